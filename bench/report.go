package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// comparison is one line of a report: a figure of ours beside what it is held against.
type comparison struct {
	what, ours, peer string
	ratio            float64
	reach            target
}

// target is what a ratio is to reach. The zero target asks for nothing.
type target struct {
	limit  float64
	atMost bool
}

func atLeast(limit float64) target { return target{limit: limit} }
func atMost(limit float64) target  { return target{limit: limit, atMost: true} }

// judge says what was to be reached, and whether it was.
func (t target) judge(ratio float64) string {
	if t.limit == 0 {
		return ""
	}
	sign, reached := "≥", ratio >= t.limit
	if t.atMost {
		sign, reached = "≤", ratio <= t.limit
	}
	verdict := "reached"
	if !reached {
		verdict = "**missed**"
	}
	return fmt.Sprintf("%s %g: %s", sign, t.limit, verdict)
}

// versus is a comparison to be made of two routes. tail is for the slowest percent
// where there are percents.
type versus struct {
	ours, peer  string
	reach, tail target
}

// comparisons lays out a table of comparisons.
func comparisons(b *strings.Builder, lines []comparison) {
	fmt.Fprintf(b, "| what | SmolVM | peer or limit | ratio | to reach |\n|---|---:|---:|---:|---|\n")
	for _, c := range lines {
		fmt.Fprintf(b, "| %s | %s | %s | %.2f | %s |\n", c.what, c.ours, c.peer, c.ratio, c.reach.judge(c.ratio))
	}
	fmt.Fprintln(b)
}

// part is a part of the results, which can be measured alone.
type part struct{ name, text string }

func (p part) begin() string { return "<!-- " + p.name + " -->\n" }
func (p part) end() string   { return "<!-- end of " + p.name + " -->\n" }

// writeResults puts parts into the file of results, in place of what was measured of
// them before.
func writeResults(file string, parts []part) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	results := string(old)
	for _, p := range parts {
		before, rest, found := strings.Cut(results, p.begin())
		_, after, ended := strings.Cut(rest, p.end())
		if found && !ended {
			return fmt.Errorf("%s: part %s has no end", file, p.name)
		}
		if !found && before != "" {
			before += "\n"
		}
		results = before + p.begin() + p.text + p.end() + after
	}
	return os.WriteFile(file, []byte(results), 0o644)
}

// hostLine says what was measured on.
func hostLine() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	release, _, _ := bytes.Cut(name.Release[:], []byte{0})
	return fmt.Sprintf("%s, %d processors, Linux %s", cpuModel(), runtime.NumCPU(), release), nil
}

func cpuModel() string {
	out, err := exec.Command("sed", "-n", "0,/^model name/s/^model name[^:]*: //p", "/proc/cpuinfo").Output()
	if err != nil || len(out) == 0 {
		return "unknown processor"
	}
	return strings.TrimSpace(string(out))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func us(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d.Nanoseconds())/1000) }

func gbits(rate float64) string { return fmt.Sprintf("%.2f Gbit/s", rate/1e9) }

func mbits(rate float64) string { return fmt.Sprintf("%.0f Mbit/s", rate/1e6) }

func perSecond(rate float64) string { return fmt.Sprintf("%.0f/s", rate) }

func over(a, b time.Duration) float64 { return float64(a) / float64(b) }
