package machine

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// skip moves to where the last lines of the log begin. A line may begin in one part and end in
// the next, and the last line of all needs no end.
func (l *logReader) skip(lines int) error {
	ends := lines // of lines, to be found before what is wanted
	last := true  // so far nothing was seen that comes after
	for i := len(l.parts) - 1; i >= 0; i-- {
		size, err := l.parts[i].Seek(0, io.SeekEnd)
		if err != nil {
			return fmt.Errorf("find last lines: %w", err)
		}
		if last && size > 0 {
			last = false
			// The end of the last line is not before it.
			if size, err = trimEnd(l.parts[i], size); err != nil {
				return err
			}
		}
		at, found, err := lineStart(l.parts[i], size, ends)
		if err != nil {
			return err
		}
		if _, err := l.parts[i].Seek(at, io.SeekStart); err != nil {
			return fmt.Errorf("find last lines: %w", err)
		}
		if ends -= found; ends == 0 {
			unwanted := l.parts[:i]
			l.parts = l.parts[i:]
			return closeAll(unwanted...)
		}
	}
	return nil
}

// trimEnd returns size without the end of line that the file may end with.
func trimEnd(file *os.File, size int64) (int64, error) {
	var end [1]byte
	if _, err := file.ReadAt(end[:], size-1); err != nil {
		return 0, fmt.Errorf("find last lines: %w", err)
	}
	if end[0] == '\n' {
		size--
	}
	return size, nil
}

// lineStart finds ends of lines before size, backwards, and returns the offset after the last
// that is wanted, or 0, and how many it found.
func lineStart(file *os.File, size int64, wanted int) (at int64, found int, err error) {
	block := make([]byte, 16<<10)
	for size > 0 {
		begin := max(0, size-int64(len(block)))
		part := block[:size-begin]
		if _, err := file.ReadAt(part, begin); err != nil {
			return 0, 0, fmt.Errorf("find last lines: %w", err)
		}
		for end := bytes.LastIndexByte(part, '\n'); end >= 0; end = bytes.LastIndexByte(part[:end], '\n') {
			if found++; found == wanted {
				return begin + int64(end) + 1, found, nil
			}
		}
		size = begin
	}
	return 0, found, nil
}
