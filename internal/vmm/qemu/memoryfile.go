package qemu

import "os"

// runSize is how much of what belongs side by side is written at once.
const runSize = 1 << 20

// memoryFile is a file that a guest's memory is written to. What is zero stays a hole.
type memoryFile struct {
	file    *os.File
	run     []byte // pages that follow each other and are not written yet
	at      int64  // where they belong
	written map[int64]uint64
}

func newMemoryFile(file *os.File) *memoryFile {
	return &memoryFile{file: file, run: make([]byte, 0, runSize), written: make(map[int64]uint64)}
}

// write implements pages.
func (m *memoryFile) write(page []byte, offset int64) error {
	if offset != m.at+int64(len(m.run)) || len(m.run)+len(page) > cap(m.run) {
		if err := m.flush(); err != nil {
			return err
		}
		m.at = offset
	}
	m.run = append(m.run, page...)
	word, bit := wordOf(offset)
	m.written[word] |= bit
	return nil
}

// clear implements pages.
func (m *memoryFile) clear(offset int64) error {
	if word, bit := wordOf(offset); m.written[word]&bit == 0 {
		return nil
	}
	return m.write(make([]byte, pageSize), offset)
}

// wordOf tells which bit of which word stands for the page at offset.
func wordOf(offset int64) (word int64, bit uint64) {
	number := offset / pageSize
	return number / 64, 1 << (number % 64)
}

func (m *memoryFile) flush() error {
	_, err := m.file.WriteAt(m.run, m.at)
	m.run = m.run[:0]
	return err
}

// finish writes what is left, of a memory of size bytes.
func (m *memoryFile) finish(size int64) error {
	if err := m.flush(); err != nil {
		return err
	}
	return m.file.Truncate(size)
}
