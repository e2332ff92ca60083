package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// samples are the measurements of several things, by name of the thing.
type samples[T cmp.Ordered] map[string][]T

func (s samples[T]) add(name string, v ...T) { s[name] = append(s[name], v...) }

// quantile returns the least value that the fraction q of a thing's measurements does not
// exceed. There must be at least one measurement, and q be above 0.
func (s samples[T]) quantile(name string, q float64) T {
	sorted := slices.Sorted(slices.Values(s[name]))
	return sorted[int(math.Ceil(q*float64(len(sorted))))-1]
}

func (s samples[T]) median(name string) T { return s.quantile(name, 0.5) }

func (s samples[T]) most(name string) T { return slices.Max(s[name]) }

func (s samples[T]) least(name string) T { return slices.Min(s[name]) }

// timed adds how long f took.
func timed(s samples[time.Duration], name string, f func() error) error {
	start := time.Now()
	err := f()
	s.add(name, time.Since(start))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
