package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/smolvm/smolvm/internal/bootid"
	"github.com/smolvm/smolvm/internal/sparse"
)

const (
	manifestFile    = "template.json"
	manifestVersion = 1
)

// errChanged says that a template is not what was made.
var errChanged = errors.New("template was changed")

// manifest tells what a template's files were when it was made.
type manifest struct {
	Version int             `json:"version"`
	Files   map[string]file `json:"files"`
	// Checked is the boot of the host in which what the files hold was last compared.
	Checked string `json:"checked"`
}

// file describes one file.
type file struct {
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	SHA256   string    `json:"sha256"`
}

// seal describes the files of a draft, and removes all others.
func (d *Draft) seal(ctx context.Context) error {
	root, err := os.OpenRoot(d.Dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // what is written through it is closed
	boot, err := bootid.Read()
	if err != nil {
		return err
	}
	m := manifest{Version: manifestVersion, Files: map[string]file{}, Checked: boot}
	for _, name := range []string{memoryFile, stateFile, diskFile, consoleFile} {
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		m.Files[name], err = describe(ctx, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ours := m.Files[e.Name()]; !ours {
			if err := root.RemoveAll(e.Name()); err != nil {
				return err
			}
		}
	}
	return m.write(root)
}

func (m manifest) write(root *os.Root) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := root.WriteFile(manifestFile+".new", data, 0o600); err != nil {
		return err
	}
	return root.Rename(manifestFile+".new", manifestFile)
}

// open opens the template in dir. It fails with os.ErrNotExist if there is none, and else says
// what is wrong with it.
func open(ctx context.Context, dir string) (_ *Template, err error) {
	// All is looked up in this very directory, even if another takes its place meanwhile.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // what is written through it is closed
	t := &Template{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w in %s", err, dir), t.Close())
		}
	}()
	data, err := root.ReadFile(manifestFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errChanged, err)
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil || m.Version != manifestVersion {
		return nil, fmt.Errorf("%w: %s", errChanged, manifestFile)
	}
	boot, err := bootid.Read()
	if err != nil {
		return nil, err
	}
	for name, to := range map[string]**os.File{
		memoryFile: &t.Memory, stateFile: &t.State, diskFile: &t.Disk, consoleFile: &t.Console,
	} {
		// Whoever maps the memory privately must be able to write all the same.
		f, err := root.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", errChanged, err)
		}
		*to = f
		if err := m.Files[name].compare(ctx, f, m.Checked != boot); err != nil {
			return nil, err
		}
	}
	if m.Checked != boot {
		m.Checked = boot
		err = m.write(root)
	}
	return t, err
}

// compare compares a file with what it was when it was made: thorough, also what it holds. What
// was not written out before the host went down may be anything.
func (want file) compare(ctx context.Context, f *os.File, thorough bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != want.Size || !info.ModTime().Equal(want.Modified) {
		return fmt.Errorf("%w: %s", errChanged, filepath.Base(f.Name()))
	}
	if !thorough {
		return nil
	}
	got, err := describe(ctx, f)
	if err == nil && got.SHA256 != want.SHA256 {
		err = fmt.Errorf("%w: %s", errChanged, filepath.Base(f.Name()))
	}
	return err
}

// describe reads a file.
func describe(ctx context.Context, f *os.File) (file, error) {
	info, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	sum := sha256.New()
	if err := sparse.Hash(ctx, sum, f); err != nil {
		return file{}, err
	}
	return file{Size: info.Size(), Modified: info.ModTime(), SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}
