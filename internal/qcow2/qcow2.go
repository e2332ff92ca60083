// Package qcow2 makes disks in QEMU's format that hold only what differs from another
// file. QEMU does everything else with them.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// The format of a disk's backing file.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

const (
	magic       = "QFI\xfb"
	version     = 3
	clusterBits = 16
	clusterSize = 1 << clusterBits
	// An entry of the L1 table stands for an L2 table of one cluster, an entry of which
	// stands for a cluster of the disk.
	bytesPerL1Entry = clusterSize / 8 * clusterSize

	headerSize      = 104
	backingFormatID = 0xe2792aca // header extension: the backing file's format
	refcountOrder   = 4          // a count of references takes 2 bytes
	maxBackingName  = 1023
)

// The first clusters of a disk.
const (
	headerCluster = iota
	refcountTableCluster
	refcountBlockCluster
	l1TableCluster // and as many of the next as it takes
)

// Overlay is a disk that holds what differs from Backing.
type Overlay struct {
	Size    int64  // bytes; what the backing file has less reads as zeros
	Backing string // absolute path of a file that must not change from then on
	Format  string // Raw or Qcow2: Backing's
}

// Create makes the disk at path, which must not exist. If it fails, nothing is left there.
func (o Overlay) Create(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create disk: %w", err)
		}
	}()
	head, size, err := o.encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(head)
	if err == nil {
		err = f.Truncate(size) // the L1 table is empty
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// encode returns what the file begins with, and its size. The rest of it is zero.
func (o Overlay) encode() (head []byte, size int64, err error) {
	switch {
	case o.Size <= 0 || o.Size%512 != 0:
		return nil, 0, fmt.Errorf("size must be a positive multiple of 512 bytes, not %d", o.Size)
	case !filepath.IsAbs(o.Backing) || len(o.Backing) > maxBackingName:
		return nil, 0, fmt.Errorf("path of backing file must be absolute and of at most %d bytes: %q", maxBackingName, o.Backing)
	case o.Format != Raw && o.Format != Qcow2:
		return nil, 0, fmt.Errorf("backing file has unknown format %q", o.Format)
	}
	l1Entries := (o.Size-1)/bytesPerL1Entry + 1
	clusters := l1TableCluster + (l1Entries*8-1)/clusterSize + 1
	if l1Entries > math.MaxInt32 || clusters > clusterSize/2 {
		return nil, 0, fmt.Errorf("%d bytes are too many", o.Size)
	}
	extensions := o.extensions()
	be := binary.BigEndian
	b := make([]byte, 0, (refcountBlockCluster+1)*clusterSize)
	b = append(b, magic...)
	b = be.AppendUint32(b, version)
	b = be.AppendUint64(b, uint64(headerSize+len(extensions)))
	b = be.AppendUint32(b, uint32(len(o.Backing)))
	b = be.AppendUint32(b, clusterBits)
	b = be.AppendUint64(b, uint64(o.Size))
	b = be.AppendUint32(b, 0) // not encrypted
	b = be.AppendUint32(b, uint32(l1Entries))
	b = be.AppendUint64(b, l1TableCluster*clusterSize)
	b = be.AppendUint64(b, refcountTableCluster*clusterSize)
	b = be.AppendUint32(b, 1) // clusters of the table of reference counts
	b = be.AppendUint32(b, 0) // snapshots
	b = be.AppendUint64(b, 0) // where they are
	b = be.AppendUint64(b, 0) // features that a reader must know
	b = be.AppendUint64(b, 0) // that it need not know
	b = be.AppendUint64(b, 0) // that a writer must clear
	b = be.AppendUint32(b, refcountOrder)
	b = be.AppendUint32(b, headerSize)
	b = append(b, extensions...)
	b = append(b, o.Backing...)
	b = b[:cap(b)]
	be.PutUint64(b[refcountTableCluster*clusterSize:], refcountBlockCluster*clusterSize)
	for i := range clusters {
		be.PutUint16(b[refcountBlockCluster*clusterSize+2*i:], 1)
	}
	return b, clusters * clusterSize, nil
}

// extensions encodes what the header is followed by.
func (o Overlay) extensions() []byte {
	b := binary.BigEndian.AppendUint32(nil, backingFormatID)
	b = binary.BigEndian.AppendUint32(b, uint32(len(o.Format)))
	b = append(b, o.Format...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return append(b, make([]byte, 8)...) // the end of the extensions
}
