package machine

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/smolvm/smolvm/internal/vmm"
)

// accelerator chooses how guest code is executed, and says why.
func (h *Host) accelerator(ctx context.Context, kernel, initrd string) (vmm.Accelerator, string, error) {
	if h.opts.Accelerator != "" {
		return h.opts.Accelerator, "asked for", nil
	}
	return h.driver.Accelerator(ctx, kernel, initrd)
}

// toldFile keeps the reason for emulation that was last told.
const toldFile = "emulation-told"

// warnOfEmulation warns once of a reason for which guests are emulated. Who hears it with every
// start hears it no more; doctor and inspect tell it always.
func (h *Host) warnOfEmulation(log *slog.Logger, reason string) {
	level := slog.LevelInfo
	path := filepath.Join(h.store.Cache(), toldFile)
	if told, err := os.ReadFile(path); err != nil || string(told) != reason {
		level = slog.LevelWarn
		if err := renameio.WriteFile(path, []byte(reason), 0o600); err != nil {
			log.Debug("will warn of emulation again", "error", err)
		}
	}
	log.Log(context.Background(), level, "guest code is emulated, which is slow and no security boundary", "reason", reason)
}
