package image

import (
	"context"
	"log/slog"
	"os"
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
	Log      *slog.Logger
	// report tells who wants the image how far it is.
	report func(Progress)
	// lock is the lock under which the build runs. Child processes inherit it, so that
	// nobody takes a build for dead while one of its processes still writes.
	lock *os.File
	done int
	last string
}

// Stage tells that a stage begins. total is how many there are in the whole build.
func (j *Job) Stage(name string, total int) {
	if j.last != "" {
		j.done++
	}
	j.last = name
	j.Log.Debug("build image", "stage", name, "done", j.done, "total", total)
	j.report(Progress{Stage: name, Done: j.done, Total: total})
}
