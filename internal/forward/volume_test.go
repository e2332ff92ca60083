//go:build !race

package forward_test

// volume is how many bytes are much data.
const volume = 1 << 30
