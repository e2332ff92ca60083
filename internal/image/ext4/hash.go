package ext4

import "math/bits"

// hasher hashes names as the kernel does for the index of a directory.
type hasher struct {
	version  byte
	unsigned bool // whether the bytes of names are
	seed     [4]uint32
}

// halfMD4 is the version of the hash that this package knows.
const halfMD4 = 1

// hashedEnd is a hash that the kernel keeps for the end of a directory.
const hashedEnd = 0xfffffffe

const hashWords = 8 // hashed at once

// name returns the hash of a name. Its lowest bit is not set.
func (h *hasher) name(name string) uint32 {
	state := h.seed
	if state == [4]uint32{} {
		state = [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	}
	for {
		mix(&state, h.words(name))
		if len(name) <= 4*hashWords {
			break
		}
		name = name[4*hashWords:]
	}
	hash := state[1] &^ 1
	if hash == hashedEnd {
		hash -= 2
	}
	return hash
}

// words returns the beginning of a name, four bytes in a word. What is missing is made up
// from the length.
func (h *hasher) words(name string) (words [hashWords]uint32) {
	pad := uint32(len(name)) & 0xff
	pad |= pad << 8
	pad |= pad << 16
	for i := range words {
		words[i] = pad
		for _, c := range []byte(name[min(4*i, len(name)):min(4*i+4, len(name))]) {
			value := uint32(c)
			if !h.unsigned {
				value = uint32(int8(c))
			}
			words[i] = words[i]<<8 + value
		}
	}
	return words
}

// mixRound is a round of MD4 that is cut in half: what it combines, the order of the
// words, and how far it rotates.
type mixRound struct {
	combine func(x, y, z uint32) uint32
	add     uint32
	order   [hashWords]int
	rotate  [4]int
}

// mix adds words to the state.
func mix(state *[4]uint32, words [hashWords]uint32) {
	a, b, c, d := state[0], state[1], state[2], state[3]
	for _, r := range [...]mixRound{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [...]int{0, 1, 2, 3, 4, 5, 6, 7}, [...]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5a827999, [...]int{1, 3, 5, 7, 0, 2, 4, 6}, [...]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [...]int{3, 7, 2, 6, 1, 5, 0, 4}, [...]int{3, 9, 11, 15}},
	} {
		for i, word := range r.order {
			a = bits.RotateLeft32(a+r.combine(b, c, d)+words[word]+r.add, r.rotate[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
