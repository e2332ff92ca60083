// Package ext4 fills an ext4 filesystem that is a file, with no kernel, no mount and no
// privilege. The filesystem itself is made, empty, by mke2fs with [Features]; [Open]
// takes it from there. What is written is as the kernel would have written it, but for one
// thing: every inode and every directory is written once and never changed, so all that a
// directory holds and how many names a file has must be known before.
//
// It knows no names but those in the directories that it is given, follows no links and
// believes sizes only as far as there is room.
//
// A [Reader] reads other filesystems of the kind, whoever wrote them.
package ext4

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Features are what mke2fs must be given with -O: all that this package knows. Checksums
// of metadata are not among them. They cost the guest time, and the disk below has its own.
const Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize"

// BlockSize and InodeSize are what mke2fs must be given with -b and -I, in bytes.
const (
	BlockSize = 4096
	InodeSize = 256
)

// The bounds of what a filesystem holds.
const (
	MaxName    = 255           // bytes in a name
	MaxSymlink = BlockSize - 1 // bytes in what a symbolic link leads to
	MaxLinks   = 65000         // names of one file; directories may have more
	MaxSize    = 1<<44 - 1<<16 // bytes in a file
)

var (
	// ErrFormat is wrapped by errors of Open: it is no filesystem that this package knows.
	ErrFormat = errors.New("not a filesystem made for this")
	// ErrFull is wrapped when there are no more blocks or inodes.
	ErrFull = errors.New("filesystem is full")
	// ErrAttributes is wrapped when extended attributes cannot be kept.
	ErrAttributes = errors.New("extended attributes cannot be kept")
)

// Device is what a filesystem is kept in.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Inode is the number of an inode.
type Inode uint32

// The inodes that mke2fs made.
const (
	Root      Inode = 2
	LostFound Inode = 11

	ReservedInodes = 11 // all up to LostFound
)

// The types in a mode, as Unix numbers them.
const (
	TypeMask      = 0o170000
	TypeFIFO      = 0o010000
	TypeCharacter = 0o020000
	TypeDirectory = 0o040000
	TypeBlock     = 0o060000
	TypeRegular   = 0o100000
	TypeSymlink   = 0o120000
	TypeSocket    = 0o140000
)

// Attributes are what an inode says of itself.
type Attributes struct {
	Mode       uint32 // the type and the permissions, as Unix numbers them
	UID, GID   uint32
	Links      int       // how many names it has; a directory's are counted by WriteDirectory
	Modified   time.Time // kept to the nanosecond from 1901 to 2446, else the nearest time
	Extended   []Extended
	DeviceNode DeviceNode // of a character or block device
}

// DeviceNode is what device a device node stands for.
type DeviceNode struct {
	Major uint32 // up to MaxMajor
	Minor uint32 // up to MaxMinor
}

// The largest numbers of devices in Linux.
const (
	MaxMajor = 1<<12 - 1
	MaxMinor = 1<<20 - 1
)

// Filesystem is an ext4 filesystem that is being filled. It is not safe for concurrent
// use. After an error nothing more can be done with it; what is on the device is then no
// filesystem.
type Filesystem struct {
	super  superblock
	groups []group
	out    *writer

	block  uint64 // where the search for free blocks goes on
	inode  uint32 // likewise for inodes, counted from 0
	table  tableWindow
	chunk  []byte // of the file that is being written
	failed error
}

// Open reads the filesystem on a device of a size in bytes. Close writes what Open read
// and others changed since. The device stays the caller's.
func Open(device Device, size int64) (*Filesystem, error) {
	super, err := readSuperblock(device, size)
	if err != nil {
		return nil, err
	}
	groups, err := super.readGroups(device)
	if err != nil {
		return nil, err
	}
	fs := &Filesystem{super: super, groups: groups, out: &writer{device: device}}
	fs.inode = firstFreeInode
	fs.table = tableWindow{fs: fs}
	return fs, nil
}

// Close writes all that was not written yet.
func (fs *Filesystem) Close() error {
	if fs.failed != nil {
		return fs.failed
	}
	fs.failed = errors.New("filesystem is closed")
	if err := fs.table.flush(); err != nil {
		return err
	}
	if err := fs.out.flush(); err != nil {
		return err
	}
	return fs.super.write(fs.out.device, fs.groups)
}

// fail keeps the first error: what is half written cannot be gone on with.
func (fs *Filesystem) fail(err error) error {
	if fs.failed == nil && err != nil {
		fs.failed = err
	}
	return err
}

// writer puts together writes that follow one another on a device, as most do.
type writer struct {
	device Device
	buffer []byte
	at     int64 // where the buffer goes
}

// writeBuffer is how much is written at once, in bytes.
const writeBuffer = 1 << 20

// write writes data at an offset, which it does not keep.
func (w *writer) write(data []byte, at int64) error {
	if at != w.at+int64(len(w.buffer)) || len(w.buffer)+len(data) > writeBuffer {
		if err := w.flush(); err != nil {
			return err
		}
		w.at = at
	}
	if len(data) >= writeBuffer {
		w.at = at + int64(len(data))
		return w.writeAt(data, at)
	}
	w.buffer = append(w.buffer, data...)
	return nil
}

func (w *writer) flush() error {
	if len(w.buffer) == 0 {
		return nil
	}
	err := w.writeAt(w.buffer, w.at)
	w.at += int64(len(w.buffer))
	w.buffer = w.buffer[:0]
	return err
}

func (w *writer) writeAt(data []byte, at int64) error {
	if _, err := w.device.WriteAt(data, at); err != nil {
		return fmt.Errorf("write filesystem: %w", err)
	}
	return nil
}
