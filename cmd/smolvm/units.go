package main

import (
	"fmt"
	"time"
)

// size is a number of bytes for people, such as "12 B" or "1.5 GiB".
func size(bytes int64) string {
	value, unit := float64(bytes), "B"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		// What would be shown as 1024 is 1 of the next unit.
		if value < 1023.5 {
			break
		}
		value, unit = value/1024, larger
	}
	if unit == "B" || value >= 9.95 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// age is a duration for people: its largest unit, such as "3 min" or "12 days".
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, d/time.Second))
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/day)
}
