package main

import (
	"slices"
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	t.Setenv("SMOLVM_TEST_HERE", "a=b c")
	got, err := environment([]string{"A=1", "SMOLVM_TEST_HERE", "EMPTY="})
	if want := []string{"A=1", "SMOLVM_TEST_HERE=a=b c", "EMPTY="}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := environment([]string{"SMOLVM_TEST_NOWHERE"}); err == nil || !strings.Contains(err.Error(), "SMOLVM_TEST_NOWHERE=VALUE") {
		t.Errorf("a variable that is not set: %v", err)
	}
	for _, entry := range []string{"=x", ""} {
		if _, err := environment([]string{entry}); err == nil || !strings.Contains(err.Error(), "has no name") {
			t.Errorf("%q: %v", entry, err)
		}
	}
}

func TestPrintEnvironment(t *testing.T) {
	env := []string{"A=1", "URL=http://x?a=b&c=<d>", "EMPTY="}
	var text, json strings.Builder
	if err := printEnvironment(&text, env, false); err != nil {
		t.Fatal(err)
	}
	if err := printEnvironment(&json, env, true); err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(env, "\n") + "\n"; text.String() != want {
		t.Errorf("%q", text.String())
	}
	if want := `{"A":"1","EMPTY":"","URL":"http://x?a=b&c=<d>"}` + "\n"; json.String() != want {
		t.Errorf("%s", json.String())
	}
}
