package image

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxPackages and maxPackageName keep them within a program's argument.
	maxPackages    = 500
	maxPackageName = 100
)

// checkPackages returns the names sorted and each once. It fails with ErrPackage if one is no
// package's name, before it gets to a program that would take it for something else.
func checkPackages(names []string) ([]string, error) {
	wellFormed := regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	for _, name := range names {
		if len(name) > maxPackageName || !wellFormed.MatchString(name) {
			return nil, fmt.Errorf("%w: %.100q is no name of a Debian package", ErrPackage, name)
		}
	}
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > maxPackages {
		return nil, fmt.Errorf("%w: %d packages are more than the %d that can be asked for at once", ErrPackage, len(names), maxPackages)
	}
	return names, nil
}

// missingMark begins the line with which packageHook tells which packages there are none of.
const missingMark = "smolvm: no package: "

// packageHook looks for packages by their exact names: apt would take some names
// for patterns, or for the wish that a package be not installed. It comes as early as mmdebstrap
// has the lists and a way to look into them.
const packageHook = `set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
missing=
for package in $SMOLVM_PACKAGES; do
	apt-cache pkgnames "$package" | grep --quiet --fixed-strings --line-regexp -e "$package" || missing="$missing $package"
done
test -z "$missing" || { echo "` + missingMark + `$missing" >&2; exit 1; }
`

// withPackages is the part of a description that names the packages.
func withPackages(names []string) string {
	const named = 3
	switch {
	case len(names) == 0:
		return ""
	case len(names) <= named:
		return ", with " + strings.Join(names, ", ")
	}
	return fmt.Sprintf(", with %s and %d more packages", strings.Join(names[:named], ", "), len(names)-named)
}
