package guestapi

import (
	"strings"
	"testing"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func authorizedKeys(data string) (int, error) {
	id := Identity{AuthorizedKeys: []byte(data)}
	_, keys, err := id.Keys()
	return len(keys), err
}

func TestAuthorizedKeys(t *testing.T) {
	n, err := authorizedKeys("# a comment\n\n" + testKey + " me\n" + testKey)
	if err != nil || n != 2 {
		t.Errorf("got %d keys, %v", n, err)
	}
	for _, bad := range []string{"no key", `command="x" ` + testKey, "restrict " + testKey} {
		if _, err := authorizedKeys(bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

func FuzzAuthorizedKeys(f *testing.F) {
	f.Add(testKey + "\n")
	f.Fuzz(func(t *testing.T, data string) {
		n, err := authorizedKeys(data)
		if lines := strings.Count(data, "\n") + 1; err == nil && n > lines {
			t.Fatalf("%d keys in %d lines", n, lines)
		}
	})
}
