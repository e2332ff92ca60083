package main

import (
	"fmt"
	"strings"
	"time"
)

const (
	// barDelay is how long something takes before a bar is shown.
	barDelay = 300 * time.Millisecond
	// barInterval is how often a bar is drawn anew.
	barInterval = 100 * time.Millisecond
	// barCells is how long a bar is.
	barCells = 24
)

// byteBar shows how many bytes of something are done. It is used by one goroutine at a time.
type byteBar struct {
	line  *progressLine
	what  string
	now   func() time.Time
	began time.Time
	drawn time.Time
}

func newByteBar(line *progressLine, what string) *byteBar {
	return &byteBar{line: line, what: what, now: time.Now, began: time.Now()}
}

// report shows that so many bytes are done of a total, which is 0 if it is not known.
func (b *byteBar) report(done, total int64) {
	now := b.now()
	if now.Sub(b.began) < barDelay || now.Sub(b.drawn) < barInterval {
		return
	}
	b.drawn = now
	b.line.say(sizeOf(b.line.out).fit(barText(b.what, done, total, now.Sub(b.began))))
}

func (b *byteBar) clear() { b.line.clear() }

// barText is the bar. What was done took so long.
func barText(what string, done, total int64, took time.Duration) string {
	if total > 0 {
		done = min(done, total) // a file that grows while it is read has more than its size
	}
	rate := float64(done) / took.Seconds()
	pace := size(int64(rate)) + "/s"
	if total <= 0 {
		return fmt.Sprintf("%s  %s  %s", size(done), pace, what)
	}
	text := fmt.Sprintf("%s %3.0f%%  %s of %s  %s", bar(done, total), 100*float64(done)/float64(total), size(done), size(total), pace)
	if rate > 0 {
		text += "  " + clock(time.Duration(float64(total-done)/rate*float64(time.Second))) + " left"
	}
	return text + "  " + what
}

// bar is how much is done of a total, which is 0 if it is not known.
func bar(done, total int64) string {
	full := 0
	if total > 0 {
		full = int(done * barCells / total)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", barCells-full) + "]"
}

// clock is a duration for people, such as "1:05" or "2:00:00".
func clock(d time.Duration) string {
	seconds := int(d.Round(time.Second).Seconds())
	if seconds < 3600 {
		return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
}
