package main

import (
	"slices"
	"testing"

	"github.com/smolvm/smolvm"
)

func TestParseVolumes(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for _, readOnly := range []bool{false, true} {
		got, err := parseVolumes([]string{".:/work", "/a/b:/c:ro", "../x:/y:rw", "~/data:/d"}, readOnly)
		want := []smolvm.SharedFolder{
			{Host: ".", Guest: "/work", ReadOnly: readOnly}, {Host: "/a/b", Guest: "/c", ReadOnly: true},
			{Host: "../x", Guest: "/y"}, {Host: "/home/me/data", Guest: "/d", ReadOnly: readOnly},
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("read-only %v: got %+v, %v", readOnly, got, err)
		}
	}
	for _, bad := range []string{"", ".", ":", ".:", ":/work", ".:/work:", ".:/work:RO", ".:/work:ro:rw", "name:/work"} {
		if got, err := parseVolumes([]string{bad}, false); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}
