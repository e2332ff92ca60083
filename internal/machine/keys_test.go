package machine

import (
	"bytes"
	"os"
	"sync"
	"testing"
)

// TestUserKey lets several first users race: there must be one key, and nothing else
// but its public half.
func TestUserKey(t *testing.T) {
	dir := t.TempDir()
	keys := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := userKey(dir)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys {
		// The one that was made has a comment behind it.
		if !bytes.HasPrefix(bytes.TrimSpace(key), bytes.TrimSpace(keys[0][:60])) || len(key) == 0 {
			t.Errorf("two keys: %s and %s", keys[0], key)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("left: %v, %v", files, err)
	}
	info, err := os.Stat(dir + "/id_ed25519")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", info.Mode(), err)
	}
}
