package oci

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/smolvm/smolvm/internal/oci/blob"
)

// configFile is an image's configuration, as far as it matters here.
type configFile struct {
	platform
	Created time.Time `json:"created"`
	Config  struct {
		Entrypoint, Cmd, Env  []string
		WorkingDir, User      string
		ExposedPorts, Volumes map[string]struct{}
		StopSignal            string
		Labels                map[string]string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// parseConfig reads the configuration of an image with so many layers.
func parseConfig(data []byte, layers int) (configFile, error) {
	var c configFile
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("%w: its configuration is malformed: %s", ErrInvalid, clean(err.Error()))
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return c, fmt.Errorf("%w: its root filesystem is of the type %q", ErrInvalid, clean(c.RootFS.Type))
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, fmt.Errorf("%w: it has %d layers, and its configuration knows of %d", ErrInvalid, layers, len(c.RootFS.DiffIDs))
	}
	for _, id := range c.RootFS.DiffIDs {
		if _, err := blob.ParseDigest(id); err != nil {
			return c, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return c, nil
}

// public is the part of it that others need. What is no port is passed over: nothing depends on
// ports but hints.
func (c configFile) public() Config {
	ports, _ := ExposedPorts(slices.Collect(maps.Keys(c.Config.ExposedPorts)))
	dir := c.Config.WorkingDir
	if dir != "" {
		dir = path.Join("/", dir)
	}
	return Config{
		Entrypoint:   c.Config.Entrypoint,
		Cmd:          c.Config.Cmd,
		Env:          c.Config.Env,
		WorkingDir:   dir,
		User:         c.Config.User,
		ExposedPorts: ports,
		StopSignal:   c.Config.StopSignal,
		Labels:       c.Config.Labels,
		Volumes:      slices.Sorted(maps.Keys(c.Config.Volumes)),
		Created:      c.Created,
	}
}
