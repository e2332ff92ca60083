package qemu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// QEMU writes a machine as one stream: first its memory, page by page, and while the guest runs
// some pages again; then the state of its devices. That stream is split here: the pages go to a
// file in which each is where the guest has it, the rest is what remains, and is a stream itself.
// Whoever goes on from there maps the file, and is sent no page.

// The parts of a stream.
const (
	streamMagic   = 0x5145564d
	streamVersion = 3

	partSectionStart  = 0x01
	partSectionPart   = 0x02
	partSectionEnd    = 0x03
	partConfiguration = 0x07
	partFooter        = 0x7e

	memorySection = "ram"
)

// Flags in the low bits of a page's offset.
const (
	flagZero     = 0x02 // nothing but zeros, or one byte many times
	flagSizes    = 0x04 // the blocks' names and sizes follow
	flagPage     = 0x08
	flagEnd      = 0x10 // of the section
	flagContinue = 0x20 // the block is the last page's
	flagMask     = pageSize - 1

	pageSize = 4096
	// maxBlocks bounds how many blocks of memory a machine has: main memory and a few of firmware.
	maxBlocks = 256
	maxMemory = 1 << 50
)

var errStream = errors.New("QEMU saves in a format that is not known here")

// pages takes a guest's main memory, in any order, some pages more than once.
type pages interface {
	// write puts a page at its offset.
	write(page []byte, offset int64) error
	// clear makes a page be zeros.
	clear(offset int64) error
}

// splitter takes a stream apart.
type splitter struct {
	in     *bufio.Reader
	rest   *bufio.Writer
	memory pages
	block  string           // which one is split off
	sizes  map[string]int64 // of the blocks
	last   string           // block of the last page
	page   [pageSize]byte
}

// splitStream reads a stream to its end. The pages of the block go to memory, all else to rest.
// It returns the block's size.
func splitStream(in io.Reader, block string, memory pages, rest io.Writer) (size int64, err error) {
	s := &splitter{
		in: bufio.NewReaderSize(in, 1<<20), rest: bufio.NewWriterSize(rest, 1<<16), memory: memory, block: block, sizes: map[string]int64{},
	}
	if err := s.split(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, fmt.Errorf("take saved machine apart: %w", err)
	}
	if size = s.sizes[block]; size == 0 {
		return 0, fmt.Errorf("take saved machine apart: %w: there is no memory called %s", errStream, block)
	}
	return size, nil
}

func (s *splitter) split() error {
	magic, err := s.uint32()
	if err != nil {
		return err
	}
	version, err := s.uint32()
	if err != nil {
		return err
	}
	if magic != streamMagic || version != streamVersion {
		return fmt.Errorf("%w: it begins with %#x, version %d", errStream, magic, version)
	}
	for ended := false; !ended; {
		if ended, err = s.part(); err != nil {
			return err
		}
	}
	// What follows is the devices'.
	if _, err := s.in.WriteTo(s.rest); err != nil {
		return err
	}
	return s.rest.Flush()
}

// part reads a part of the stream, and tells whether it was the last of the memory.
func (s *splitter) part() (last bool, err error) {
	kind, err := s.byte()
	if err != nil {
		return false, err
	}
	switch kind {
	case partConfiguration: // the name of the kind of machine
		length, err := s.uint32()
		if err != nil {
			return false, err
		}
		_, err = io.CopyN(s.rest, s.in, int64(length))
		return false, err
	case partSectionStart:
		if err := s.sectionStart(); err != nil {
			return false, err
		}
	case partSectionPart, partSectionEnd:
		if _, err := s.uint32(); err != nil { // its number: there is one section only
			return false, err
		}
	default:
		return false, fmt.Errorf("%w: part %#x before the memory's end", errStream, kind)
	}
	for ended := false; !ended; {
		if ended, err = s.record(); err != nil {
			return false, err
		}
	}
	footer, err := s.byte()
	if err != nil {
		return false, err
	}
	if footer != partFooter {
		return false, fmt.Errorf("%w: a section ends with %#x", errStream, footer)
	}
	_, err = s.uint32()
	return kind == partSectionEnd, err
}

// sectionStart reads how the memory's section begins. No other may have started.
func (s *splitter) sectionStart() error {
	if _, err := s.uint32(); err != nil {
		return err
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	if name != memorySection {
		return fmt.Errorf("%w: section %q before the memory's end", errStream, name)
	}
	for range 2 { // which of several, and the format's version
		if _, err := s.uint32(); err != nil {
			return err
		}
	}
	return nil
}

// record reads what a section consists of, and tells whether it was the section's end.
func (s *splitter) record() (end bool, err error) {
	var head [8]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return false, err
	}
	offset := binary.BigEndian.Uint64(head[:])
	flags := offset & flagMask
	offset &^= flagMask
	switch flags &^ flagContinue {
	case flagSizes:
		if _, err := s.rest.Write(head[:]); err != nil {
			return false, err
		}
		return false, s.blocks(offset)
	case flagEnd:
		_, err := s.rest.Write(head[:])
		return true, err
	case flagZero, flagPage:
	default:
		return false, fmt.Errorf("%w: flags %#x of a page", errStream, flags)
	}
	var name []byte // as it is in the stream
	if flags&flagContinue == 0 {
		length, err := s.in.ReadByte()
		if err != nil {
			return false, err
		}
		name = make([]byte, 1+int(length))
		name[0] = length
		if _, err := io.ReadFull(s.in, name[1:]); err != nil {
			return false, err
		}
		s.last = string(name[1:])
	}
	size, ok := s.sizes[s.last]
	if !ok || offset > uint64(size)-pageSize {
		return false, fmt.Errorf("%w: page at %#x of memory %q", errStream, offset, s.last)
	}
	content := s.page[:]
	if flags&flagZero != 0 {
		content = s.page[:1]
	}
	if _, err := io.ReadFull(s.in, content); err != nil {
		return false, err
	}
	switch {
	case s.last != s.block:
		_, err = s.rest.Write(append(append(head[:], name...), content...))
	case len(content) == pageSize:
		err = s.memory.write(content, int64(offset))
	case content[0] == 0:
		err = s.memory.clear(int64(offset))
	default:
		for i := range s.page {
			s.page[i] = content[0]
		}
		err = s.memory.write(s.page[:], int64(offset))
	}
	return false, err
}

// blocks reads which blocks of memory there are, of total bytes.
func (s *splitter) blocks(total uint64) error {
	if total > maxMemory {
		return fmt.Errorf("%w: %d bytes of memory", errStream, total)
	}
	var sum uint64
	for range maxBlocks {
		if sum >= total {
			return nil
		}
		name, err := s.name()
		if err != nil {
			return err
		}
		length, err := s.uint64()
		if err != nil {
			return err
		}
		if length < pageSize || length%pageSize != 0 || length > total-sum {
			return fmt.Errorf("%w: memory %q has %d bytes", errStream, name, length)
		}
		sum += length
		s.sizes[name] = int64(length)
	}
	return fmt.Errorf("%w: more than %d blocks of memory", errStream, maxBlocks)
}

// What the following read goes to the rest as well.

func (s *splitter) byte() (byte, error) {
	b, err := s.in.ReadByte()
	if err != nil {
		return 0, err
	}
	return b, s.rest.WriteByte(b)
}

func (s *splitter) uint32() (uint32, error) {
	var b [4]byte
	err := s.both(b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

func (s *splitter) uint64() (uint64, error) {
	var b [8]byte
	err := s.both(b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// name reads a text with its length before it.
func (s *splitter) name() (string, error) {
	length, err := s.byte()
	if err != nil {
		return "", err
	}
	b := make([]byte, length)
	err = s.both(b)
	return string(b), err
}

func (s *splitter) both(b []byte) error {
	if _, err := io.ReadFull(s.in, b); err != nil {
		return err
	}
	_, err := s.rest.Write(b)
	return err
}
