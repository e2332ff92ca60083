package main

import "testing"

func TestClosest(t *testing.T) {
	names := []string{"web", "database", "cache", "db"}
	for misspelt, want := range map[string]string{
		"wbe": "web", "we": "web", "weeb": "web", "databsae": "database", "dtabse": "database",
		"cahce": "cache", "xyz": "", "": "", "completely-different": "",
	} {
		if got := closest(misspelt, names); got != want {
			t.Errorf("closest to %q: %q, want %q", misspelt, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "abd", 1},
		{"abc", "acb", 1}, {"kitten", "sitting", 3}, {"start", "strat", 1}, {"ab", "ba", 1},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance from %q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
