package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/smolvm/smolvm"
)

// TestBatchAtOnce has a batch whose work goes on only when it is under way with every VM.
func TestBatchAtOnce(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	dataDir(t, names...)
	var together sync.WaitGroup
	together.Add(len(names))
	failure := errors.New("it would not")
	b := batch{doing: "trying", do: func(_ context.Context, vm *smolvm.VM) error {
		together.Done()
		together.Wait()
		if vm.Name() == "c" {
			return failure
		}
		return nil
	}}
	var line bytes.Buffer
	var told []string
	results := b.run(t.Context(), names, nil, &progressLine{out: &line, enabled: true}, func(name string) { told = append(told, name) })
	if len(told) != 3 || results[0] != nil || results[1] != nil || results[3] != nil || !errors.Is(results[2], failure) {
		t.Errorf("told %v, failed %v", told, results)
	}
	if text := line.String(); !strings.Contains(text, "trying a, b, c, d (0 of 4 done)") || !strings.Contains(text, "(3 of 4 done)") || !strings.HasSuffix(text, eraseLine) {
		t.Errorf("the terminal shows %q", text)
	}
}

// TestBatchInterrupted wants to be told what became of a VM.
func TestBatchInterrupted(t *testing.T) {
	dataDir(t, "web")
	ctx, cancel := context.WithCancel(t.Context())
	b := batch{do: func(ctx context.Context, _ *smolvm.VM) error {
		cancel()
		return ctx.Err()
	}}
	results := b.run(ctx, []string{"web"}, nil, &progressLine{}, func(string) { t.Error("it is told to be done") })
	if results[0] == nil || results[0].Error() != "interrupted: VM web is created" {
		t.Errorf("it says %v", results[0])
	}
}

func TestBatchOutput(t *testing.T) {
	dataDir(t, "a", "b")
	if got := invoke(t, "rm", "a", "a"); got.code != 0 || got.stdout != "a\n" {
		t.Errorf("the same VM twice: %+v", got)
	}
	got := invoke(t, "rm", "--json", "b", "c")
	var results []batched
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || got.code != exitFailed {
		t.Fatalf("%v, %+v", err, got)
	}
	if len(results) != 2 || results[0] != (batched{Name: "b"}) || results[1].Name != "c" || results[1].Error != `VM not found: "c"` {
		t.Errorf("got %+v", results)
	}
	if got := invoke(t, "stop", "--all"); got.code != 0 || got.stdout != "" || got.stderr != "" {
		t.Errorf("all of none: %+v", got)
	}
}
