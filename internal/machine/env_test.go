package machine

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvChange(t *testing.T) {
	env := []string{"A=1", "B=2", "C=3"}
	for name, test := range map[string]struct {
		change EnvChange
		want   []string
	}{
		"nothing":         {EnvChange{}, env},
		"set":             {EnvChange{Set: []string{"D=4"}}, []string{"A=1", "B=2", "C=3", "D=4"}},
		"set anew":        {EnvChange{Set: []string{"A=x=y"}}, []string{"B=2", "C=3", "A=x=y"}},
		"the last counts": {EnvChange{Set: []string{"D=1", "D=2"}}, []string{"A=1", "B=2", "C=3", "D=2"}},
		"unset":           {EnvChange{Unset: []string{"B", "never"}}, []string{"A=1", "C=3"}},
		"unset and set":   {EnvChange{Unset: []string{"B"}, Set: []string{"B=new"}}, []string{"A=1", "C=3", "B=new"}},
		"empty value":     {EnvChange{Set: []string{"A="}}, []string{"B=2", "C=3", "A="}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.change.validate(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, test.change.apply(env)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, bad := range []EnvChange{
		{Set: []string{"no equals sign"}}, {Set: []string{"=x"}}, {Set: []string{"A=\x00"}}, {Unset: []string{""}}, {Unset: []string{"A=1"}},
	} {
		if err := bad.validate(); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%+v: %v, want ErrInvalidOption", bad, err)
		}
	}
}
