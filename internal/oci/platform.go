package oci

import (
	"fmt"
	"slices"
	"strings"
)

// platform is what an image is made for.
type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return clean(s)
}

func parsePlatform(s string) (platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return platform{}, fmt.Errorf("%q is no platform: say linux/amd64, for example", s)
	}
	p := platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// fit tells how well what is made for have suits who wants p: not at all if it is negative, else
// the less the better.
func (p platform) fit(have platform) int {
	switch {
	case have.OS != p.OS || have.Architecture != p.Architecture:
		return -1
	case have.Variant == p.Variant:
		return 0
	case p.Variant != "":
		return -1 // it was asked for
	case have.Architecture == "arm64" && have.Variant == "v8" || have.Architecture == "amd64" && have.Variant == "v1":
		return 1 // what every processor of this architecture is
	case have.Architecture == "arm":
		return 2
	}
	return -1
}

// choose returns the one of an index's entries that suits best.
func (p platform) choose(entries []descriptor) (descriptor, error) {
	best, rank := descriptor{}, -1
	var others []string
	for _, entry := range entries {
		if entry.Platform == nil {
			continue
		}
		fit := p.fit(*entry.Platform)
		if fit >= 0 && (rank < 0 || fit < rank) {
			best, rank = entry, fit
		}
		// Builders keep attestations beside the images, with a platform of this name.
		if name := entry.Platform.String(); !strings.HasPrefix(name, "unknown/") && !slices.Contains(others, name) {
			others = append(others, name)
		}
	}
	if rank >= 0 {
		return best, nil
	}
	// An index of one needs not say what that is for; its configuration does.
	if len(entries) == 1 && entries[0].Platform == nil {
		return entries[0], nil
	}
	return descriptor{}, p.none(others)
}

func (p platform) none(others []string) error {
	slices.Sort(others)
	const shown = 20
	more := ""
	if len(others) > shown {
		others, more = others[:shown], " and more"
	}
	if len(others) == 0 {
		return fmt.Errorf("%w: there is none for %s, and nothing says what there is one for", ErrPlatform, p)
	}
	return fmt.Errorf("%w: there is none for %s, but for %s%s", ErrPlatform, p, strings.Join(others, ", "), more)
}
