// Package share serves a folder of the host to a guest's kernel, which speaks the FUSE protocol.
//
// The guest is not trusted. No name in a request leads anywhere but to an entry of a directory that
// the guest was given before, no symbolic link is ever followed on the host, nothing but regular
// files and directories is ever opened, and all that a guest can make the host keep is bounded.
package share
