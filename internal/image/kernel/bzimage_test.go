package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// fakeKernel returns what passes for an ELF kernel: a header, then bytes of which half
// can be compressed.
func fakeKernel(size int) []byte {
	kernel := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range kernel {
		if i&4096 != 0 {
			kernel[i] = byte(r.Uint32())
		}
	}
	copy(kernel, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(kernel[18:], 62)
	return kernel
}

// bzImage puts a payload into an image, as the kernel's build does.
func bzImage(payload []byte) []byte {
	const setupSects, offset = 3, 100
	image := make([]byte, (setupSects+1)*sector+offset)
	image[offSetupSects] = setupSects
	copy(image[offMagic:], setupMagic)
	le := binary.LittleEndian
	le.PutUint16(image[offVersion:], 0x20f)
	le.PutUint32(image[offPayload:], offset)
	le.PutUint32(image[offPayloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "more"...)
}

func withSize(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

func packLZ4(t testing.TB, data []byte) []byte {
	packed := []byte("\x02\x21\x4c\x18")
	for len(data) > 0 {
		n := min(len(data), lz4BlockSize)
		block := make([]byte, lz4.CompressBlockBound(n))
		size, err := lz4.CompressBlock(data[:n], block, nil)
		if err != nil || size == 0 {
			t.Fatalf("pack: %d bytes, %v", size, err)
		}
		packed = append(withSize(packed, size), block[:size]...)
		data = data[n:]
	}
	return packed
}

func packGzip(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packZstd(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// packXZ packs as the kernel's build does, with the filter for x86.
func packXZ(t testing.TB, data []byte) []byte {
	cmd := exec.Command("xz", "--check=crc32", "--x86", "--lzma2=preset=0", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func TestVMLinux(t *testing.T) {
	kernel, large := fakeKernel(100_000), fakeKernel(lz4BlockSize+100_000)
	for name, payload := range map[string][]byte{
		"lz4":               withSize(packLZ4(t, kernel), len(kernel)),
		"lz4 in two blocks": withSize(packLZ4(t, large), len(large)),
		"gzip":              packGzip(t, kernel),
		"zstd":              withSize(packZstd(t, kernel), len(kernel)),
		"xz":                withSize(packXZ(t, kernel), len(kernel)),
		"none":              kernel,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := VMLinux(t.Context(), bzImage(payload))
			if err != nil {
				t.Fatal(err)
			}
			want := kernel
			if len(got) > len(kernel) {
				want = large
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, not the %d packed", len(got), len(want))
			}
		})
	}
}

func TestVMLinuxRefuses(t *testing.T) {
	kernel := fakeKernel(100_000)
	good := bzImage(withSize(packLZ4(t, kernel), len(kernel)))
	if _, err := VMLinux(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	change := func(edit func(b []byte) []byte) []byte { return edit(bytes.Clone(good)) }
	noELF := bytes.Clone(kernel)
	noELF[0] = 'X'
	for name, image := range map[string][]byte{
		"empty":            {},
		"short":            good[:setupHeaderEnd-1],
		"no magic":         change(func(b []byte) []byte { b[offMagic]++; return b }),
		"old":              change(func(b []byte) []byte { b[offVersion] = 7; return b }),
		"payload outside":  change(func(b []byte) []byte { b[offPayload+3] = 0xff; return b }),
		"payload too long": change(func(b []byte) []byte { b[offPayloadLength+3] = 0xff; return b }),
		"empty payload":    bzImage(nil),
		"tiny payload":     bzImage([]byte("abc")),
		"unknown":          bzImage([]byte("BZh91AY&SY....")),
		"bad lz4":          bzImage(withSize([]byte("\x02\x21\x4c\x18\xff\xff\xff\x00abc"), 10)),
		"bad lz4 size":     bzImage(withSize([]byte("\x02\x21\x4c\x18\xff"), 10)),
		"bad gzip":         bzImage([]byte("\x1f\x8b\x08 garbage of some length")),
		"bad zstd":         bzImage(withSize([]byte("\x28\xb5\x2f\xfd garbage"), 10)),
		"bad xz":           bzImage(withSize([]byte("\xfd7zXZ\x00 garbage"), 10)),
		"larger lz4":       bzImage(withSize(packLZ4(t, kernel), len(kernel)-1)),
		"smaller lz4":      bzImage(withSize(packLZ4(t, kernel), len(kernel)+1)),
		"larger zstd":      bzImage(withSize(packZstd(t, kernel), len(kernel)-1)),
		"larger xz":        bzImage(withSize(packXZ(t, kernel), len(kernel)-1)),
		"enormous":         bzImage(withSize(packLZ4(t, kernel), maxVMLinux+1)),
		"no kernel":        bzImage(withSize(packLZ4(t, noELF), len(noELF))),
		"other machine":    bzImage(append([]byte("\x7fELF\x02\x01"), make([]byte, 100)...)),
	} {
		if _, err := VMLinux(t.Context(), image); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want ErrFormat", name, err)
		}
	}
}

func TestVMLinuxCancelled(t *testing.T) {
	kernel := fakeKernel(100_000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := VMLinux(ctx, bzImage(withSize(packXZ(t, kernel), len(kernel)))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func FuzzVMLinux(f *testing.F) {
	kernel := fakeKernel(200)
	f.Add(bzImage(withSize(packLZ4(f, kernel), len(kernel))))
	f.Add(bzImage(packGzip(f, kernel)))
	f.Add(bzImage(withSize(packZstd(f, kernel), len(kernel))))
	f.Fuzz(func(t *testing.T, image []byte) {
		if strings.Contains(string(image), "7zXZ") {
			return // runs a program, which is not what is tested
		}
		got, err := VMLinux(t.Context(), image)
		if err == nil && !isKernelELF(got) {
			t.Fatal("no error and no kernel")
		}
	})
}
