// Package kernel takes apart a Linux kernel package: the ELF kernel out of its
// bzImage, and the order in which modules must be loaded.
package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ErrFormat is wrapped by errors about data that is no x86 Linux kernel, or one
// that is compressed in a way that is not known here.
var ErrFormat = errors.New("not a known kernel format")

// maxVMLinux limits what is unpacked. Distributions' kernels have 30 to 100 MB.
const maxVMLinux = 512 << 20

// Where the fields of the setup header stand in a bzImage, as the x86 boot protocol
// defines them. The payload is counted from the end of the setup sectors.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayload       = 0x248
	offPayloadLength = 0x24c
	setupHeaderEnd   = 0x250

	setupMagic      = "HdrS"
	minBootProtocol = 0x208 // the first with a payload
	sector          = 512
)

// VMLinux returns the ELF kernel that is packed in a bzImage. For one compressed
// with xz it runs the program xz; otherwise it uses no other program.
func VMLinux(ctx context.Context, bzImage []byte) ([]byte, error) {
	payload, err := payload(bzImage)
	if err != nil {
		return nil, err
	}
	vmlinux, err := unpack(ctx, payload)
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	if !isKernelELF(vmlinux) {
		return nil, fmt.Errorf("unpack kernel: %w: payload is no ELF program for x86-64", ErrFormat)
	}
	return vmlinux, nil
}

// payload cuts the compressed kernel out of the bzImage.
func payload(bzImage []byte) ([]byte, error) {
	if len(bzImage) < setupHeaderEnd || string(bzImage[offMagic:offMagic+4]) != setupMagic {
		return nil, fmt.Errorf("%w: no bzImage", ErrFormat)
	}
	le := binary.LittleEndian
	if v := le.Uint16(bzImage[offVersion:]); v < minBootProtocol {
		return nil, fmt.Errorf("%w: boot protocol %#x is too old", ErrFormat, v)
	}
	sects := uint64(bzImage[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*sector + uint64(le.Uint32(bzImage[offPayload:]))
	end := start + uint64(le.Uint32(bzImage[offPayloadLength:]))
	if start >= end || end > uint64(len(bzImage)) {
		return nil, fmt.Errorf("%w: payload is outside of the file", ErrFormat)
	}
	return bzImage[start:end], nil
}

// unpack decompresses a payload. The build appends the unpacked size in four bytes,
// except to gzip, which has it at its end anyway, and to what is not compressed.
func unpack(ctx context.Context, payload []byte) ([]byte, error) {
	has := func(magic string) bool { return bytes.HasPrefix(payload, []byte(magic)) }
	if has("\x7fELF") {
		return payload, nil
	}
	if len(payload) < 8 {
		return nil, fmt.Errorf("%w: payload is too short", ErrFormat)
	}
	body := payload[:len(payload)-4]
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxVMLinux {
		return nil, fmt.Errorf("%w: kernel of %d bytes", ErrFormat, size)
	}
	var (
		vmlinux []byte
		err     error
	)
	switch {
	case has("\x02\x21\x4c\x18"):
		vmlinux, err = unpackLZ4(body[4:], size)
	case has("\x1f\x8b\x08"):
		vmlinux, err = unpackGzip(payload, size)
	case has("\x28\xb5\x2f\xfd"):
		vmlinux, err = unpackZstd(body, size)
	case has("\xfd7zXZ\x00"):
		vmlinux, err = unpackXZ(ctx, body, size)
	default:
		return nil, fmt.Errorf("%w: payload begins with % x", ErrFormat, payload[:8])
	}
	if err != nil {
		return nil, err
	}
	if int64(len(vmlinux)) != size {
		return nil, fmt.Errorf("%w: %d bytes unpacked, %d expected", ErrFormat, len(vmlinux), size)
	}
	return vmlinux, nil
}

// lz4BlockSize is how much a block of the legacy format unpacks to, the last one
// excepted.
const lz4BlockSize = 8 << 20

// unpackLZ4 unpacks the legacy format: blocks, each after its packed size.
func unpackLZ4(data []byte, size int64) ([]byte, error) {
	var out []byte
	block := make([]byte, min(size, lz4BlockSize))
	for len(data) > 0 {
		if len(data) < 4 {
			return nil, fmt.Errorf("%w: LZ4 block without a size", ErrFormat)
		}
		packed := uint64(binary.LittleEndian.Uint32(data))
		data = data[4:]
		if packed > uint64(len(data)) {
			return nil, fmt.Errorf("%w: LZ4 block is cut off", ErrFormat)
		}
		n, err := lz4.UncompressBlock(data[:packed], block)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if int64(len(out)+n) > size {
			return nil, fmt.Errorf("%w: more than the %d bytes expected", ErrFormat, size)
		}
		out = append(out, block[:n]...)
		data = data[packed:]
	}
	return out, nil
}

func unpackGzip(data []byte, size int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r.Multistream(false)
	return readAtMost(r, size)
}

func unpackZstd(data []byte, size int64) ([]byte, error) {
	// Kernels are packed with a window of up to 128 MiB.
	r, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	defer r.Close()
	return readAtMost(r, size)
}

// unpackXZ runs xz, because kernels are packed through its filter for x86 code, which
// the Go implementation lacks.
func unpackXZ(ctx context.Context, data []byte, size int64) ([]byte, error) {
	// The data ends with the stream: xz complains of anything behind it.
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--single-stream")
	cmd.Stdin = bytes.NewReader(data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start xz: %w", err)
	}
	out, err := readAtMost(stdout, size)
	if err != nil {
		// It may still be writing.
		return nil, errors.Join(err, ignoreExit(cmd.Process.Kill()), ignoreExit(cmd.Wait()))
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w: xz: %w: %s", ErrFormat, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// ignoreExit leaves out the error of a program that was ended on purpose.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// readAtMost reads all of r and fails if that is more than size bytes.
func readAtMost(r io.Reader, size int64) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if int64(len(out)) > size {
		return nil, fmt.Errorf("%w: more than the %d bytes expected", ErrFormat, size)
	}
	return out, nil
}

// isKernelELF looks at the identification and the machine in the ELF header.
func isKernelELF(data []byte) bool {
	const class64, littleEndian, machineX86 = 2, 1, 62
	return len(data) >= 64 && bytes.HasPrefix(data, []byte("\x7fELF")) &&
		data[4] == class64 && data[5] == littleEndian && binary.LittleEndian.Uint16(data[18:]) == machineX86
}
