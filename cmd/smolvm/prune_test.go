package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/smolvm/smolvm"
)

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "Yes\n": true, " yes ": true, "\n": false, "": false, "no\n": false, "yesterday\n": false} {
		var asked bytes.Buffer
		got, err := confirm(t.Context(), strings.NewReader(answer), &asked, "Really?")
		if err != nil || got != want || asked.String() != "Really? [y/N] " {
			t.Errorf("%q: %v, %v, asked %q", answer, got, err, asked.String())
		}
	}
	// Who does not answer at all can still interrupt.
	ctx, cancel := context.WithCancel(t.Context())
	silent, end := io.Pipe()
	defer end.Close()
	cancel()
	if yes, err := confirm(ctx, silent, io.Discard, "Really?"); yes || !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, %v", yes, err)
	}
}

func TestPrintPruned(t *testing.T) {
	var out bytes.Buffer
	err := printPruned(&out, "removed", []smolvm.Pruned{{Kind: "vm", Name: "web", Bytes: 2048}, {Kind: "image", Name: "debian", Bytes: 1 << 20}})
	want := "KIND    NAME     SIZE\nvm      web      2.0 KiB\nimage   debian   1.0 MiB\nIn all 2, 1.0 MiB, removed.\n"
	if err != nil || out.String() != want {
		t.Errorf("%v, got %q, want %q", err, out.String(), want)
	}
	out.Reset()
	if err := printPruned(&out, "removed", nil); err != nil || out.String() != "There is nothing to remove.\n" {
		t.Errorf("%v, %q", err, out.String())
	}
}
