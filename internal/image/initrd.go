package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/smolvm/smolvm/internal/image/cpio"
)

const (
	initrdDir    = ".initrd"
	initrdSuffix = ".cpio"
	// initrdFormat changes when what is put into an initial filesystem does.
	initrdFormat = "smolvm initrd 1"
	// initrdUnused is how long an initial filesystem that nobody asks for is kept.
	initrdUnused = 7 * 24 * time.Hour
)

// Initrd returns the path of the initial filesystem for a machine of the image: the
// guest program as /init, the modules that booting needs below /modules, and
// /modules.list with their paths, one a line, in the order in which to load them.
//
// It is made once for each image and guest program, and kept in the store's own
// directory even if the image is a shared one.
func (s *Store) Initrd(ctx context.Context, img *Image, guest *io.SectionReader) (path string, err error) {
	if guest.Size() == 0 {
		return "", errors.New("make initrd: guest program is empty")
	}
	dir, err := filepath.Abs(filepath.Join(s.dir, initrdDir))
	if err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	// Otherwise another process could find it unused for long just before it is used.
	lock, err := lock(ctx, filepath.Join(dir, lockFile), exclusive, nil)
	if err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	defer lock.Close() //nolint:errcheck // nothing was written to it
	key, err := initrdKey(img, guest)
	if err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	path = filepath.Join(dir, key+initrdSuffix)
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return path, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("find initrd: %w", err)
	}
	var archive bytes.Buffer
	if err := writeInitrd(&archive, img, guest); err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	if err := renameio.WriteFile(path, archive.Bytes(), 0o444, renameio.WithTempDir(dir)); err != nil {
		return "", fmt.Errorf("write initrd: %w", err)
	}
	return path, removeOldInitrds(dir, now.Add(-initrdUnused))
}

// initrdKey names the initial filesystem by what it is made of. The image's ID stands
// for the modules.
func initrdKey(img *Image, guest *io.SectionReader) (string, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n", initrdFormat, img.ID)
	if id := buildID(guest); id != nil {
		fmt.Fprintf(sum, "%d\n%s", guest.Size(), id)
	} else if err := copyProgram(sum, guest); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// buildID returns what Go's linker calls a program by, which is a hash of its contents: to
// hash megabytes again would take a good part of a start. It is nil for other programs.
func buildID(program *io.SectionReader) []byte {
	file, err := elf.NewFile(program)
	if err != nil {
		return nil
	}
	section := file.Section(".note.go.buildid")
	if section == nil {
		return nil
	}
	note, err := section.Data()
	// Names of actions and contents: an ID that was set by hand has no slashes.
	if err != nil || bytes.Count(note, []byte("/")) != 3 {
		return nil
	}
	return note
}

func copyProgram(to io.Writer, guest *io.SectionReader) error {
	if _, err := io.Copy(to, io.NewSectionReader(guest, 0, guest.Size())); err != nil {
		return fmt.Errorf("read guest program: %w", err)
	}
	return nil
}

func writeInitrd(archive *bytes.Buffer, img *Image, guest *io.SectionReader) error {
	w := cpio.NewWriter(archive)
	for _, dir := range []string{"dev", "proc", "sys", modulesDir} {
		if err := w.Directory(dir, 0o755); err != nil {
			return err
		}
	}
	var program bytes.Buffer
	if err := copyProgram(&program, guest); err != nil {
		return err
	}
	if err := w.File("init", 0o755, program.Bytes()); err != nil {
		return err
	}
	var list strings.Builder
	for _, file := range img.Modules {
		module, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := modulesDir + "/" + filepath.Base(file)
		if err := w.File(name, 0o644, module); err != nil {
			return err
		}
		list.WriteString("/" + name + "\n")
	}
	if err := w.File("modules.list", 0o644, []byte(list.String())); err != nil {
		return err
	}
	return w.Close()
}

// removeOldInitrds removes the initial filesystems that nobody asked for since, and what
// killed writers left. The caller has the lock.
func removeOldInitrds(dir string, since time.Time) error {
	names, err := findInitrds(dir, func(_ string, used time.Time) bool { return !used.Before(since) })
	for _, name := range names {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	if err != nil {
		return fmt.Errorf("remove old initrds: %w", err)
	}
	return nil
}

// findInitrds returns the names of the initial filesystems in dir that are not to be kept,
// and of what killed writers left. The caller has the lock: nobody else writes, so a file of
// another name is no initial filesystem.
func findInitrds(dir string, keep func(name string, used time.Time) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find old initrds: %w", err)
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.Name() == lockFile {
			continue
		}
		if !strings.HasSuffix(e.Name(), initrdSuffix) || !keep(e.Name(), info.ModTime()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
