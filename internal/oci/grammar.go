package oci

import (
	"net/netip"
	"strconv"
	"strings"
)

const (
	digits     = "0123456789"
	lowerCase  = "abcdefghijklmnopqrstuvwxyz"
	upperCase  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	alphabet   = lowerCase + digits
	separators = "._-"
)

// The longest names and tags that registries know.
const (
	maxName = 255
	maxTag  = 128
)

// isHost tells whether the first part of a name is a registry, by Docker's rule.
func isHost(part string) bool {
	return part == "localhost" || strings.ContainsAny(part, ".:"+upperCase)
}

// checkHost checks a host name or address, in brackets if it is of IPv6, with or without a port.
func checkHost(host string) error {
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strings.Trim(port, digits) != "" {
			return problem("%q is no port of a host; say HOST/NAME or HOST:PORT/NAME", port)
		}
	}
	if address, found := strings.CutPrefix(name, "["); found {
		if ip, err := netip.ParseAddr(strings.TrimSuffix(address, "]")); err == nil && ip.Is6() && ip.Zone() == "" {
			return nil
		}
		return problem("%q is no IPv6 address; say [ADDRESS]/NAME or [ADDRESS]:PORT/NAME", name)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || strings.Trim(label, "-") != label ||
			strings.ContainsFunc(label, func(r rune) bool { return !strings.ContainsRune(alphabet+upperCase+"-", r) }) {
			return problem("%q is no host; say HOST/NAME or HOST:PORT/NAME", name)
		}
	}
	return nil
}

// checkName checks a name as registries know it: parts with a slash between them, of lower-case
// letters and digits with one separator between them: a dot, one or two underscores, or dashes.
func checkName(name string) error {
	switch {
	case name == "":
		return problem("the name is missing; say python:3.13-alpine, for example")
	case strings.ContainsAny(name, upperCase):
		return problem("names have lower-case letters only; say %q", strings.ToLower(strings.TrimPrefix(name, officialImages)))
	case len(name) > maxName:
		return problem("the name is longer than %d characters", maxName)
	}
	for part := range strings.SplitSeq(name, "/") {
		if !isPart(part) {
			return problem("%q is not the name of an image, nor part of one: it consists of letters and digits, "+
				"with . _ or - only between them; say NAME:TAG or HOST/NAME:TAG", part)
		}
	}
	return nil
}

func isPart(part string) bool {
	if part == "" || !strings.ContainsRune(alphabet, rune(part[0])) || !strings.ContainsRune(alphabet, rune(part[len(part)-1])) {
		return false
	}
	for run := range strings.FieldsFuncSeq(part, func(r rune) bool { return strings.ContainsRune(alphabet, r) }) {
		if run != "." && run != "_" && run != "__" && strings.Trim(run, "-") != "" {
			return false
		}
	}
	return true
}

func checkTag(tag string) error {
	bad := func(r rune) bool { return !strings.ContainsRune(alphabet+upperCase+separators, r) }
	if tag == "" || len(tag) > maxTag || strings.ContainsFunc(tag, bad) || strings.ContainsRune(".-", rune(tag[0])) {
		return problem("%q is no tag: it has 1 to %d letters, digits, and . _ or - but not at its beginning; say NAME:TAG", tag, maxTag)
	}
	return nil
}
