package image

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/smolvm/smolvm/internal/oci"
)

// Source makes images of one kind.
type Source interface {
	// Build makes an image in job.Dir: vmlinux, rootfs.ext4 and the directory modules
	// with the files that the manifest names. Everything else there is removed when
	// Build has returned. When ctx ends, so do Build and all processes that it started.
	Build(ctx context.Context, job *Job) (Manifest, error)
}

// Job is one build of an image.
type Job struct {
	// Dir is an empty directory on the filesystem of the store.
	Dir string
	// Packages are to be installed beside those that the source always installs. Their names
	// are well-formed. If there is none of a name, Build fails with ErrPackage.
	Packages []string
	Kernel   kernelChoice
	Log      *slog.Logger
	// report tells who wants the image how far it is.
	report func(Progress)
	// lock is the lock under which the build runs. Child processes inherit it, so that
	// nobody takes a build for dead while one of its processes still writes.
	lock *os.File
	now  Progress
}

// Stage tells that a stage begins. total is how many there are in the whole build.
func (j *Job) Stage(name string, total int) {
	done := j.now.Done
	if j.now.Stage != "" {
		done++
	}
	j.Log.Debug("build image", "stage", name, "done", done, "total", total)
	j.now = Progress{Stage: name, Done: done, Total: total}
	j.report(j.now)
}

// restart tells that the stages begin again.
func (j *Job) restart() { j.now = Progress{} }

// reportInterval is how often at most bytes are reported.
const reportInterval = 100 * time.Millisecond

// bytes returns a function that reports how many bytes of the stage are done.
func (j *Job) bytes(all int64) func(done int64) {
	return bytesOf(j.report, j.now, all)
}

// bytesOf returns a function that reports how many bytes of a stage are done.
func bytesOf(report func(Progress), now Progress, all int64) func(done int64) {
	told := time.Now()
	return func(done int64) {
		if time.Since(told) < reportInterval {
			return
		}
		told = time.Now()
		now.Bytes, now.AllBytes = done, all
		report(now)
	}
}

// layers returns a function that reports how far the layers are of which it is told.
func (j *Job) layers() func(oci.Progress) {
	now, at := j.now, map[string]int{}
	var layers []LayerProgress
	return func(p oci.Progress) {
		i, known := at[p.Digest]
		if !known {
			i = len(layers)
			at[p.Digest] = i
			layers = append(layers, p)
		}
		layers[i] = p
		now.Layers = slices.Clone(layers) // who was told may still have the others
		now.Bytes, now.AllBytes = 0, 0
		for _, l := range layers {
			now.Bytes, now.AllBytes = now.Bytes+l.Done, now.AllBytes+l.Total
		}
		j.report(now)
	}
}
