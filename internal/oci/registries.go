package oci

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Registries says where images are fetched from in place of their registries, or before them. The
// zero value says nothing. See LoadRegistries.
type Registries struct {
	Rules []Rule
	// InsecureNetworks have registries as if each was Insecure, if they are named by address.
	InsecureNetworks []netip.Prefix
}

// Rule is about the images whose names begin with Prefix. Of several that fit, the one with the
// longest prefix counts, and of those that have the same, the first.
type Rule struct {
	// Prefix is a registry, maybe with parts of a name: "docker.io", "ghcr.io/team". It may be
	// "*.DOMAIN" for all registries in a domain.
	Prefix string
	// Location stands in place of the prefix when the image is fetched. It may be empty.
	Location string
	// Insecure allows plain HTTP and unverified TLS.
	Insecure bool
	// Blocked says that such images must not be fetched.
	Blocked bool
	// Mirrors are asked one after the other, before the registry itself.
	Mirrors []Mirror
}

// Mirror is a registry that has the images of another, or gets them from there when it is asked.
type Mirror struct {
	Location string // in place of the prefix; "http://" or "https://" may stand before it
	Insecure bool
	// For says for which images: all if it is empty.
	For MirrorUse
}

// MirrorUse is which images a mirror is asked for.
type MirrorUse string

// A mirror may be trusted with images whose digest is known only, or be asked for tags only.
const (
	DigestsOnly MirrorUse = "digest-only"
	TagsOnly    MirrorUse = "tag-only"
)

// match returns the rule for an image, which may be the zero one, and what follows its prefix.
func (r Registries) match(image string) (rule Rule, rest string) {
	rest = image
	for _, candidate := range r.Rules {
		if after, found := cutPrefix(image, candidate.Prefix); found && (rule.Prefix == "" || len(candidate.Prefix) > len(rule.Prefix)) {
			rule, rest = candidate, after
		}
	}
	return rule, rest
}

// cutPrefix cuts off a rule's prefix, which ends where a part of the name does.
func cutPrefix(image, prefix string) (rest string, found bool) {
	if domain, wild := strings.CutPrefix(prefix, "*"); wild {
		host, name, _ := strings.Cut(image, "/")
		u := url.URL{Host: host}
		return "/" + name, strings.HasSuffix(u.Hostname(), domain) && strings.HasPrefix(domain, ".")
	}
	rest, found = strings.CutPrefix(image, prefix)
	return rest, found && prefix != "" && (rest == "" || strings.HasPrefix(rest, "/"))
}

// endpoints returns where to fetch an image from, one after the other; none if that is blocked.
func (r Registries) endpoints(ref Reference, insecure bool) []endpoint {
	image := ref.Host + "/" + ref.Name
	rule, rest := r.match(image)
	if rule.Blocked {
		return nil
	}
	var all []endpoint
	add := func(location string, insecure, mirror bool) {
		if bare, plain := strings.CutPrefix(location, "http://"); plain {
			location, insecure = bare, true
		}
		location = strings.Trim(strings.TrimPrefix(location, "https://"), "/")
		host, name, _ := strings.Cut(location+rest, "/")
		all = append(all, endpoint{host: host, name: name, insecure: insecure || r.isInsecure(host), mirror: mirror})
	}
	for _, m := range rule.Mirrors {
		if m.For == "" || (m.For == DigestsOnly) == (ref.Digest != "") {
			add(m.Location, insecure || m.Insecure, true)
		}
	}
	location := rule.Location
	if location == "" {
		location = strings.TrimSuffix(image, rest)
	}
	add(location, insecure || rule.Insecure, false)
	return all
}

func (r Registries) isInsecure(host string) bool {
	u := url.URL{Host: host}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && slices.ContainsFunc(r.InsecureNetworks, func(n netip.Prefix) bool { return n.Contains(ip.Unmap()) })
}
