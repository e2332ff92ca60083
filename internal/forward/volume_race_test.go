//go:build race

package forward_test

// volume is how many bytes are much data to the race detector, which looks at each.
const volume = 256 << 20
