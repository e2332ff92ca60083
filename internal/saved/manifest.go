package saved

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
	"github.com/smolvm/smolvm/internal/vmm"
)

const (
	manifestFile    = "saved.json"
	manifestVersion = 2
)

// ErrDamaged is wrapped by errors about a saved machine that is not what was saved.
var ErrDamaged = errors.New("saved machine is damaged")

// manifest tells what a saved machine's files were when it was saved.
type manifest struct {
	Version int             `json:"version"`
	Files   map[string]file `json:"files"`
	Shape   vmm.Shape       `json:"shape,omitzero"`
	// Checked is the boot of the host in which what the files hold was last compared.
	Checked string `json:"checked"`
}

// file describes one file.
type file struct {
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	SHA256   string    `json:"sha256,omitempty"` // empty: see Fingerprint
}

// Seal notes the sizes and times of a draft's files, and removes all others from its directory. With
// that it is a saved machine, until the host goes down: see Fingerprint.
func (d *Draft) Seal() error {
	root, err := os.OpenRoot(d.Dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // what is written through it is closed
	boot, err := bootid.Read()
	if err != nil {
		return err
	}
	m := manifest{Version: manifestVersion, Files: map[string]file{}, Checked: boot, Shape: d.Shape}
	for _, name := range fileNames() {
		f, err := root.Open(name)
		if errors.Is(err, os.ErrNotExist) && name == diskFile {
			continue
		}
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		m.Files[name] = file{Size: info.Size(), Modified: info.ModTime()}
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

// Fingerprint notes what the files of the saved machine in dir hold. Without that it is of no use
// after the host was down: nobody could tell whether all of it was written out.
func Fingerprint(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // what is written through it is closed
	m, err := readManifest(root)
	if err != nil {
		return err
	}
	for name, known := range m.Files {
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		known.SHA256, err = fingerprint(ctx, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		m.Files[name] = known
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

func readManifest(root *os.Root) (manifest, error) {
	var m manifest
	data, err := root.ReadFile(manifestFile)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err == nil && m.Version != manifestVersion {
		err = fmt.Errorf("version %d is not known to this program", m.Version)
	}
	if err != nil {
		return m, fmt.Errorf("%w: %s: %v", ErrDamaged, manifestFile, err)
	}
	return m, nil
}

// Open opens the saved machine in dir. It fails with os.ErrNotExist if there is none, and with
// ErrDamaged if it is not what was saved. The caller owes a Close.
func Open(ctx context.Context, dir string) (_ *Machine, err error) {
	// All is looked up in this very directory, even if another takes its place meanwhile.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // what is written through it is closed
	s := &Machine{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w in %s", err, dir), s.Close())
		}
	}()
	m, err := readManifest(root)
	if err != nil {
		return nil, err
	}
	boot, err := bootid.Read()
	if err != nil {
		return nil, err
	}
	s.Shape = m.Shape
	for name, to := range map[string]**os.File{
		memoryFile: &s.Memory, stateFile: &s.State, diskFile: &s.Disk, consoleFile: &s.Console,
	} {
		want, ok := m.Files[name]
		if !ok && name == diskFile {
			continue
		}
		// Whoever maps the memory privately must be able to write all the same.
		f, err := root.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
		}
		*to = f
		if err := want.compare(ctx, f, m.Checked != boot); err != nil {
			return nil, err
		}
	}
	if m.Checked != boot {
		m.Checked = boot
		err = m.write(root)
	}
	return s, err
}

// compare compares a file with what it was when it was made: thorough, also what it holds. What
// was not written out before the host went down may be anything.
func (want file) compare(ctx context.Context, f *os.File, thorough bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != want.Size || !info.ModTime().Equal(want.Modified) {
		return fmt.Errorf("%w: %s", ErrDamaged, filepath.Base(f.Name()))
	}
	if !thorough {
		return nil
	}
	got, err := fingerprint(ctx, f)
	if err == nil && got != want.SHA256 {
		err = fmt.Errorf("%w: %s", ErrDamaged, filepath.Base(f.Name()))
	}
	return err
}

// fingerprint reads a file.
func fingerprint(ctx context.Context, f *os.File) (string, error) {
	sum := sha256.New()
	if err := sparse.Hash(ctx, sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
