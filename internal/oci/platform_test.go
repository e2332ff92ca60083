package oci

import "testing"

func TestPlatforms(t *testing.T) {
	for _, test := range []struct {
		want string
		have []string
		best string // none if it is empty
	}{
		{"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, "linux/amd64"},
		{"linux/amd64", []string{"linux/amd64/v1"}, "linux/amd64/v1"},
		{"linux/amd64", []string{"linux/amd64/v3"}, ""},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v3"}, "linux/amd64/v3"},
		{"linux/amd64/v3", []string{"linux/amd64"}, ""},
		{"linux/arm64", []string{"linux/arm/v8", "linux/arm64/v8"}, "linux/arm64/v8"},
		{"linux/arm", []string{"linux/arm/v7", "linux/arm/v6"}, "linux/arm/v7"},
		{"linux/amd64", []string{"windows/amd64", "linux/arm64"}, ""},
	} {
		want, err := parsePlatform(test.want)
		if err != nil {
			t.Fatal(err)
		}
		var entries []descriptor
		for _, name := range test.have {
			p, err := parsePlatform(name)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, descriptor{Platform: &p})
		}
		got, err := want.choose(entries)
		switch {
		case test.best == "":
			wantError(t, err, ErrPlatform, "none for "+test.want, test.have[0])
		case err != nil || got.Platform.String() != test.best:
			t.Errorf("of %v %v is chosen for %s, %v", test.have, got.Platform, test.want, err)
		}
	}
	for _, bad := range []string{"linux", "linux/", "/amd64", "a/b/c/d", ""} {
		if p, err := parsePlatform(bad); err == nil {
			t.Errorf("%q is read as %s", bad, p)
		}
	}
}
