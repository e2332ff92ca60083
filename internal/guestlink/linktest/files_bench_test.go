package linktest_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/smolvm/smolvm/internal/transfer"
)

// BenchmarkFiles copies one big file, and many small ones, into a guest and out of it.
func BenchmarkFiles(b *testing.B) {
	dir := b.TempDir()
	for name, count := range map[string]int{"big": 1, "small": 10_000} {
		size := int64(64<<20) / int64(count)
		if count > 1 {
			size = 1 << 10
		}
		for i := range count {
			sub := fmt.Sprintf("%s/%s/%d", dir, name, i/100)
			if err := os.MkdirAll(sub, 0o755); err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(fmt.Sprintf("%s/%d", sub, i%100), make([]byte, size), 0o644); err != nil {
				b.Fatal(err)
			}
		}
		for direction, copyFiles := range map[string]copyFunc{"in": transfer.ToGuest, "out": transfer.FromGuest} {
			b.Run(name+"/"+direction, func(b *testing.B) {
				b.SetBytes(size * int64(count))
				_, link := openLink(b)
				dst := b.TempDir()
				for b.Loop() {
					if err := copyFiles(b.Context(), link, dir+"/"+name, dst); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
			})
		}
	}
}

// copyFunc is how the package transfer copies.
type copyFunc func(ctx context.Context, g transfer.Guest, src, dst string, opts ...transfer.Option) error
