package share

import "os"

// nobody is whom the host's root is to guests of other users.
const nobody = 65534

// owner tells how users and groups of the host are known in the guest: the user that runs the VM is
// root there, and root of the host is somebody whom nobody there can be. If root runs the VM all
// are who they are.
type owner struct{ uid, gid uint32 }

// currentOwner is the user that runs this program.
func currentOwner() owner { return owner{uint32(os.Geteuid()), uint32(os.Getegid())} }

func (o owner) root() bool { return o.uid == 0 }

func (o owner) guestUID(uid uint32) uint32 { return toGuest(o.uid, uid) }
func (o owner) guestGID(gid uint32) uint32 { return toGuest(o.gid, gid) }
func (o owner) hostUID(uid uint32) uint32  { return toHost(o.uid, uid) }
func (o owner) hostGID(gid uint32) uint32  { return toHost(o.gid, gid) }

func toGuest(own, id uint32) uint32 {
	switch id {
	case own:
		return 0
	case 0:
		return nobody
	}
	return id
}

func toHost(own, id uint32) uint32 {
	if id == 0 {
		return own
	}
	return id
}
