package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// largeLayer is a layer of many small files and of large ones of zeros, which is made as it is read.
func largeLayer(files int, large int64) Layer {
	return Layer{Name: "large", Open: func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() {
			tw := tar.NewWriter(w)
			write := func(name string, size int64, data io.Reader) {
				h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
				if err := tw.WriteHeader(&h); err == nil {
					_, err = io.CopyN(tw, data, size)
					_ = err // the reader has gone
				}
			}
			for i := range files {
				write(fmt.Sprintf("some/directory/%d/file-%d", i/200, i), 100, strings.NewReader(strings.Repeat("x", 100)))
			}
			for i := range 4 {
				write(fmt.Sprint("large", i), large/4, zeroReader{})
			}
			w.CloseWithError(tw.Close())
		}()
		return r, nil
	}}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Contents are never in memory: a large image needs little of it. That is measured in a
// process of its own, as a heap only grows.
func TestMemory(t *testing.T) {
	const variable, size, most = "SMOLVM_ROOTFS_MEMORY", 512 << 20, 64 << 20
	if os.Getenv(variable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMemory$", "-test.count=1")
		cmd.Env = append(os.Environ(), variable+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	tree, err := Read(t.Context(), []Layer{largeLayer(5_000, size)}, Limits{}, nil)
	must(t, err, tree.WriteExt4(t.Context(), t.TempDir()+"/ext4", options(t, 1<<30)))
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	if stats.HeapSys > most {
		t.Errorf("the heap has %d bytes", stats.HeapSys)
	}
	// The limit is one that contents would break.
	held := bytes.Repeat([]byte("x"), most)
	if runtime.ReadMemStats(&stats); stats.HeapSys <= most {
		t.Errorf("with %d bytes more the heap has %d bytes", len(held), stats.HeapSys)
	}
}

func BenchmarkRead(b *testing.B) {
	l := largeLayer(20_000, 0)
	for b.Loop() {
		if _, err := Read(b.Context(), []Layer{l}, Limits{}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWrite writes 20,000 files, and 256 MiB in another one.
func BenchmarkWrite(b *testing.B) {
	many := make([]item, 20_000)
	for i := range many {
		many[i] = file(fmt.Sprintf("d/%d/file-%d", i/100, i), strings.Repeat("data", 1000))
	}
	data := packed(b, append(many, file("large", string(bytes.Repeat([]byte("large file"), 256<<20/10))))...)
	tree, err := Read(b.Context(), []Layer{layerOf(data)}, Limits{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(tree.Bytes())
	path := b.TempDir() + "/ext4"
	for b.Loop() {
		if err := tree.WriteExt4(b.Context(), path, options(b, 2<<30)); err != nil {
			b.Fatal(err)
		}
		must(b, os.Remove(path))
	}
}
