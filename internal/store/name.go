package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
)

// ErrInvalidName is wrapped by errors about a name that is no DNS label.
var ErrInvalidName = errors.New("invalid VM name")

// maxNameLength is how long a DNS label may be.
const maxNameLength = 63

// CheckName reports whether name is a DNS label: 1 to 63 lower-case letters,
// digits and hyphens, with a letter or digit at both ends. A VM's name is its
// host name in the guest and the name of its directory on the host.
func CheckName(name string) error {
	if len(name) < 1 || len(name) > maxNameLength {
		return fmt.Errorf("%w %q: it must have 1 to %d characters", ErrInvalidName, name, maxNameLength)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(name)-1:
		default:
			return fmt.Errorf("%w %q: use lower-case letters, digits and, between them, hyphens", ErrInvalidName, name)
		}
	}
	return nil
}

// GenerateName returns a readable name, such as "calm-otter-42".
func GenerateName() string {
	adjectives := [...]string{
		"able", "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp",
		"daring", "deft", "eager", "early", "fair", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand",
		"happy", "hardy", "honest", "jolly", "keen", "kind", "light", "lively", "lucky", "mellow", "merry", "mild",
		"neat", "nimble", "noble", "patient", "plain", "polite", "proud", "quick", "quiet", "rapid", "ready", "royal",
		"sharp", "shy", "silent", "silver", "smart", "snug", "solid", "spry", "steady", "sunny", "swift", "tidy",
		"tiny", "warm", "wise", "witty",
	}
	nouns := [...]string{
		"ant", "auk", "badger", "bat", "bear", "beaver", "bee", "bison", "cat", "crab", "crane", "crow",
		"deer", "dove", "duck", "eagle", "egret", "elk", "emu", "falcon", "ferret", "finch", "fox", "frog",
		"gecko", "goat", "goose", "gull", "hare", "hawk", "hen", "heron", "ibex", "ibis", "jay", "kite",
		"koala", "lark", "lemur", "lion", "llama", "lynx", "mole", "moose", "moth", "mouse", "newt", "orca",
		"otter", "owl", "panda", "pony", "puffin", "quail", "rabbit", "raven", "robin", "seal", "snail", "stork",
		"swan", "tern", "toad", "wren",
	}
	return fmt.Sprintf("%s-%s-%d", adjectives[rand.IntN(len(adjectives))], nouns[rand.IntN(len(nouns))], rand.IntN(100))
}
