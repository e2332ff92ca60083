package main

import (
	"strings"
	"testing"
	"time"
)

func TestBarText(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		took        time.Duration
		want        string
	}{
		{1 << 20, 4 << 20, time.Second, "[######..................]  25%  1.0 MiB of 4.0 MiB  1.0 MiB/s  0:03 left  a -> b"},
		{0, 4 << 20, time.Second, "[........................]   0%  0 B of 4.0 MiB  0 B/s  a -> b"},
		{4 << 20, 4 << 20, 2 * time.Second, "[########################] 100%  4.0 MiB of 4.0 MiB  2.0 MiB/s  0:00 left  a -> b"},
		{9 << 20, 4 << 20, 2 * time.Second, "[########################] 100%  4.0 MiB of 4.0 MiB  2.0 MiB/s  0:00 left  a -> b"},
		{1 << 20, 1 << 30, time.Minute, "[........................]   0%  1.0 MiB of 1.0 GiB  17 KiB/s  17:03:00 left  a -> b"},
		{3 << 20, 0, time.Second, "3.0 MiB  3.0 MiB/s  a -> b"},
	} {
		if got := barText("a -> b", c.done, c.total, c.took); got != c.want {
			t.Errorf("%d of %d after %s:\n%s, not\n%s", c.done, c.total, c.took, got, c.want)
		}
	}
}

func TestByteBar(t *testing.T) {
	var out strings.Builder
	now := time.Now()
	b := newByteBar(&progressLine{out: &out, enabled: true}, strings.Repeat("long", 50))
	b.now, b.began = func() time.Time { return now }, now
	b.report(10, 100)
	if out.Len() > 0 {
		t.Errorf("what is done in no time shows %q", out.String())
	}
	now = now.Add(time.Second)
	b.report(20, 100)
	shown := out.String()
	if !strings.Contains(shown, "20%") {
		t.Errorf("after a second there is %q", shown)
	}
	if text := strings.TrimPrefix(shown, eraseLine); len(text) >= 80 {
		t.Errorf("a line of 80 columns gets %d", len(text))
	}
	b.report(21, 100)
	if out.String() != shown {
		t.Error("it is drawn for every byte")
	}
	now = now.Add(time.Second)
	b.report(30, 100)
	if !strings.Contains(out.String(), "30%") {
		t.Error("it stands still")
	}
	b.clear()
	if !strings.HasSuffix(out.String(), eraseLine) {
		t.Error("it stays")
	}
}
