package rootfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUnpack(t *testing.T) {
	zeros := bytes.Repeat([]byte{0}, 64<<20)
	plain := packed(t, file("plain", "contents"))
	layers := []Layer{
		layerOf(plain),
		layerOf(compressed(t, "gzip", packed(t, file("gzip", "contents"), file("zeros", string(zeros))))),
		layerOf(compressed(t, "zstd", packed(t, file("zstd", "contents")))),
		layerOf(compressed(t, "gzip", plain)[:40]), // cut short
		{Name: "gone", Open: func() (io.ReadCloser, error) { return nil, os.ErrNotExist }},
	}
	dir := filepath.Join(t.TempDir(), "layers")
	told := int64(0)
	got, err := Unpack(t.Context(), layers, dir, func(done int64) { told = done })
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Read(t.Context(), got[:3], Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "gzip", "zstd"} {
		if data, err := tree.ReadFile(t.Context(), name); err != nil || string(data) != "contents" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("got %v, %v", entries, err)
	}
	// What is but zeros takes no space, and what is compressed is read once.
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "layer1"), &stat); err != nil || stat.Size < 64<<20 || stat.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes take %d blocks, %v", stat.Size, stat.Blocks, err)
	}
	if told == 0 {
		t.Error("nothing was told")
	}
	for i, want := range map[int]error{3: ErrLayer, 4: os.ErrNotExist} {
		if _, err := Read(t.Context(), got[i:i+1], Limits{}, nil); !errors.Is(err, want) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

// TestUnpackNoRoom has less space than what is unpacked would take.
func TestUnpackNoRoom(t *testing.T) {
	data := packed(t, file("file", string(bytes.Repeat([]byte("contents"), 1<<17))))
	u := &unpacker{room: 1 << 20}
	if err := u.layer(t.Context(), layerOf(compressed(t, "gzip", data)), filepath.Join(t.TempDir(), "layer")); !errors.Is(err, errNoRoom) {
		t.Errorf("got %v", err)
	}
	u = &unpacker{room: 2 << 20}
	if err := u.layer(t.Context(), layerOf(compressed(t, "gzip", data)), filepath.Join(t.TempDir(), "layer")); err != nil {
		t.Errorf("with enough of it: %v", err)
	}
}

func TestUnpackCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = w.Write(compressed(t, "gzip", packed(t, file("file", "contents")))[:30]) }()
	layers := []Layer{{Name: "slow", Open: func() (io.ReadCloser, error) { return r, nil }}}
	if _, err := Unpack(ctx, layers, filepath.Join(t.TempDir(), "layers"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
