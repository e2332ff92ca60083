// Package guest is the program that runs in a guest as PID 1: it boots the guest
// from its initramfs, gives it its identity, and serves the host, on the
// guest channel, and SSH clients on the network.
//
// It is started once per boot by [Main]. The parts that need no PID 1, most of
// all the [Server], are also used by the tests of the host's side.
//
// The guest is on the far side of the trust boundary: nothing here protects the
// host. What it does protect is the guest's owner, from others on the network.
package guest
