package blob

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// ErrAlgorithm is wrapped by errors about a digest that is not one of those that are understood.
var ErrAlgorithm = errors.New("unsupported digest")

// Digest names content by its hash: "sha256:" or "sha512:" and lower-case hexadecimal digits.
// Those that ParseDigest and Of return are well-formed, and safe as parts of a path.
type Digest string

// ParseDigest reads a digest. It fails with ErrAlgorithm if it is malformed, or of an algorithm
// other than SHA-256 and SHA-512.
func ParseDigest(s string) (Digest, error) {
	algorithm, digits, _ := strings.Cut(s, ":")
	size := 0
	switch algorithm {
	case "sha256":
		size = sha256.Size
	case "sha512":
		size = sha512.Size
	default:
		return "", fmt.Errorf("%w %.100q: it must be sha256:… or sha512:…", ErrAlgorithm, s)
	}
	if len(digits) != hex.EncodedLen(size) || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w %.200q: %s is followed by %d digits 0-9 and a-f", ErrAlgorithm, s, algorithm, hex.EncodedLen(size))
	}
	return Digest(s), nil
}

// Of is the SHA-256 digest of data.
func Of(data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Matches tells whether data is what the digest names.
func (d Digest) Matches(data []byte) bool {
	sum := d.hash()
	sum.Write(data)
	return d.is(sum)
}

func (d Digest) algorithm() string {
	algorithm, _, _ := strings.Cut(string(d), ":")
	return algorithm
}

func (d Digest) digits() string {
	_, digits, _ := strings.Cut(string(d), ":")
	return digits
}

// hash returns a new hash of the digest's algorithm.
func (d Digest) hash() hash.Hash {
	if d.algorithm() == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// is tells whether the digest is that of what was written to sum.
func (d Digest) is(sum hash.Hash) bool { return hex.EncodeToString(sum.Sum(nil)) == d.digits() }
