package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The files of an image in its directory.
const (
	manifestFile = "image.json"
	kernelFile   = "vmlinux"
	modulesDir   = "modules"
	rootFSFile   = "rootfs.ext4"
)

// Manifest is what a source says of the image that it made.
type Manifest struct {
	Description   string   `json:"description"`
	KernelVersion string   `json:"kernel_version"`
	KernelPackage string   `json:"kernel_package,omitempty"` // that has the kernel, if one has
	Env           []string `json:"env,omitempty"`
	// Config is what a container image says of its commands.
	Config Config `json:"config,omitzero"`
	// From is what somebody had, or a registry has, if the image is made of that, and Digest
	// which container image that is, if it is one.
	From   string `json:"from,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Message is what somebody said of the image who made it of a VM.
	Message string `json:"message,omitempty"`
	// Packages are what the job asked for. The store sets them.
	Packages []string `json:"packages,omitempty"`
	// Modules are the names of files in the directory of modules, in load order.
	Modules []string `json:"modules,omitempty"`
}

// record is the contents of image.json.
type record struct {
	Manifest
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// errIncomplete says that a directory holds no whole image.
var errIncomplete = errors.New("incomplete image")

// load reads the image in dir.
func load(name, dir string) (*Image, error) {
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read image %q: %w", name, errIncomplete)
	} else if err != nil {
		return nil, fmt.Errorf("read image %q: %w", name, err)
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, fmt.Errorf("read image %q: %s: %w", name, filepath.Join(dir, manifestFile), err)
	}
	if rec.ID != filepath.Base(dir) {
		return nil, fmt.Errorf("read image %q: %w: %s has the ID %q", name, errIncomplete, dir, rec.ID)
	}
	img := &Image{
		Name:          name,
		ID:            rec.ID,
		Description:   rec.Description,
		Created:       rec.Created,
		KernelVersion: rec.KernelVersion,
		KernelPackage: rec.KernelPackage,
		From:          rec.From,
		Digest:        rec.Digest,
		Message:       rec.Message,
		Config:        rec.Config,
		Packages:      rec.Packages,
		Env:           slices.Concat(rec.Env, rec.Config.Env),
		Dir:           dir,
		Kernel:        filepath.Join(dir, kernelFile),
		RootFS:        filepath.Join(dir, rootFSFile),
	}
	required := []string{img.Kernel, img.RootFS}
	for _, file := range rec.Modules {
		if filepath.Base(file) != file {
			return nil, fmt.Errorf("read image %q: module %q is no file's name", name, file)
		}
		img.Modules = append(img.Modules, filepath.Join(dir, modulesDir, file))
	}
	for _, path := range append(required, img.Modules...) {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("read image %q: %w: %w", name, errIncomplete, err)
		}
		if path == img.RootFS {
			img.RootFSSize = info.Size()
		}
	}
	return img, nil
}

// writeRecord writes image.json into the directory of an image under construction.
func writeRecord(dir string, rec record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("write image record: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifestFile), append(data, '\n'), 0o444); err != nil {
		return fmt.Errorf("write image record: %w", err)
	}
	return nil
}
