package oci

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
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

// public is the part of it that others need.
func (c configFile) public() Config {
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
		ExposedPorts: exposedPorts(c.Config.ExposedPorts),
		StopSignal:   c.Config.StopSignal,
		Labels:       c.Config.Labels,
		Volumes:      slices.Sorted(maps.Keys(c.Config.Volumes)),
		Created:      c.Created,
	}
}

// exposedPorts returns "NUMBER/PROTOCOL" for each, sorted. It passes over what is no port: nothing
// depends on it but hints.
func exposedPorts(set map[string]struct{}) []string {
	type port struct {
		number   uint64
		protocol string
	}
	var ports []port
	for text := range set {
		number, protocol, found := strings.Cut(text, "/")
		if !found {
			protocol = "tcp"
		}
		protocol = strings.ToLower(protocol)
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
			continue
		}
		ports = append(ports, port{n, protocol})
	}
	slices.SortFunc(ports, func(a, b port) int {
		if a.number != b.number {
			return int(a.number) - int(b.number)
		}
		return strings.Compare(a.protocol, b.protocol)
	})
	var texts []string
	for _, p := range slices.Compact(ports) {
		texts = append(texts, fmt.Sprintf("%d/%s", p.number, p.protocol))
	}
	return texts
}
