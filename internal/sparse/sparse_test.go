package sparse

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A hole is as good as the zeros that it reads as. All else counts: what there is, where, and
// how long the file is.
func TestHash(t *testing.T) {
	const size = 5*blockSize + 100
	hash := func(make func(*os.File) error) string {
		t.Helper()
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sum := sha256.New()
		if err := errors.Join(f.Truncate(size), make(f), Hash(t.Context(), sum, f)); err != nil {
			t.Fatal(err)
		}
		return string(sum.Sum(nil))
	}
	at := func(offset int64) func(*os.File) error {
		return func(f *os.File) error {
			_, err := f.WriteAt([]byte("data"), offset)
			return err
		}
	}
	const place = 3*blockSize + 17
	dense := hash(func(f *os.File) error {
		_, err := f.WriteAt(make([]byte, size), 0)
		return errors.Join(err, at(place)(f))
	})
	if hash(at(place)) != dense {
		t.Error("a hole is not as good as zeros")
	}
	for what, other := range map[string]func(*os.File) error{
		"nothing":          func(*os.File) error { return nil },
		"the end":          at(size - 4),
		"another place":    at(place + 1),
		"another block":    at(place - blockSize),
		"a longer file":    func(f *os.File) error { return errors.Join(at(place)(f), f.Truncate(size+1)) },
		"a shorter file":   func(f *os.File) error { return errors.Join(at(place)(f), f.Truncate(size-1)) },
		"more of the same": func(f *os.File) error { return errors.Join(at(place)(f), at(place+4)(f)) },
	} {
		if hash(other) == dense {
			t.Errorf("%s makes no difference", what)
		}
	}
	f, err := os.Open("sparse.go")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Hash(ctx, sha256.New(), f); !errors.Is(err, context.Canceled) {
		t.Errorf("given up, it says %v", err)
	}
}
