package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2", "junk", "=x"}, nil, []string{"A=3", "C=a=b", "D=\x00"})
	if want := []string{"A=3", "B=2", "C=a=b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if getenv(got, "C") != "a=b" || getenv(got, "D") != "" {
		t.Error("values are not found")
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, path string
		want       string
		err        error
	}{
		{"tool", "/nowhere:" + dir, dir + "/tool", nil},
		{"tool", ".", dir + "/tool", nil}, // counted from the command's directory
		{"./tool", "", "./tool", nil},
		{"tool", "/nowhere", "", fs.ErrNotExist},
		{"tool", "", "", fs.ErrNotExist},
		{"data", dir + ":/nowhere", "", fs.ErrPermission},
		{"/", "", "/", unix.EISDIR},
	} {
		got, err := lookPath(c.name, c.path, dir)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q in %q: %q, %v", c.name, c.path, got, err)
		}
	}
}
