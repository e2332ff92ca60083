package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/BurntSushi/toml"
)

// HostRegistries reads what the host's configuration of Docker and Podman says of registries:
// Docker's daemon.json, and registries.conf with the files in registries.conf.d, each that of the
// user if there is one and else that of the system. Of registries.conf it heeds prefixes, locations,
// mirrors, insecure and blocked; not short names and their aliases, as bare names mean what they
// mean to Docker. Where both are about the same registry, Podman's goes first.
func HostRegistries() (Registries, error) {
	config, err := os.UserConfigDir()
	if err != nil {
		config = "/nonexistent" // who has no home has no configuration of his own
	}
	docker := firstFile(filepath.Join(config, "docker", "daemon.json"), "/etc/docker/daemon.json")
	system := "/etc/containers/registries.conf"
	main := firstFile(os.Getenv("CONTAINERS_REGISTRIES_CONF"), filepath.Join(config, "containers", "registries.conf"), system)
	parts := filepath.Join(config, "containers", "registries.conf.d")
	if main == "" || main == system {
		parts = system + ".d"
	}
	// It never fails for this pattern. The last file counts the most.
	more, _ := filepath.Glob(filepath.Join(escape(parts), "*.conf"))
	slices.Reverse(more)
	return LoadRegistries(docker, append(more, main)...)
}

// escape makes a pattern that matches the path alone.
func escape(path string) string {
	var b []rune
	for _, r := range path {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			b = append(b, '\\')
		}
		b = append(b, r)
	}
	return string(b)
}

func firstFile(paths ...string) string {
	for _, path := range paths {
		if info, err := os.Stat(path); path != "" && err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// LoadRegistries reads a daemon.json of Docker and files like Podman's registries.conf, the most
// important first. An empty path, or that of a file which is not there, says nothing.
func LoadRegistries(docker string, containers ...string) (Registries, error) {
	var all Registries
	for _, path := range containers {
		err := load(path, func(data []byte) error { return all.addContainers(data) })
		if err != nil {
			return Registries{}, err
		}
	}
	err := load(docker, func(data []byte) error { return all.addDocker(data) })
	if err != nil {
		return Registries{}, err
	}
	return all, nil
}

// load gives a file to parse, which is not called if there is none.
func load(path string, parse func([]byte) error) error {
	if path == "" {
		return nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read registries: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	data, err := readBounded(file, maxManifest)
	if err == nil {
		err = parse(data)
	}
	if err != nil {
		return fmt.Errorf("read registries from %s: %w", path, err)
	}
	return nil
}

func (r *Registries) addContainers(data []byte) error {
	var file struct {
		Registry []struct {
			Prefix, Location  string
			Insecure, Blocked bool
			MirrorByDigest    bool `toml:"mirror-by-digest-only"`
			Mirror            []struct {
				Location string
				Insecure bool
				Pull     MirrorUse `toml:"pull-from-mirror"`
			}
		}
	}
	if err := toml.Unmarshal(data, &file); err != nil {
		return err
	}
	for _, registry := range file.Registry {
		rule := Rule{Prefix: registry.Prefix, Location: registry.Location, Insecure: registry.Insecure, Blocked: registry.Blocked}
		if rule.Prefix == "" {
			rule.Prefix = rule.Location
		}
		if rule.Prefix == "" {
			return errors.New("a registry has neither prefix nor location")
		}
		for _, mirror := range registry.Mirror {
			use := mirror.Pull
			switch {
			case use == "all":
				use = ""
			case use == "" && registry.MirrorByDigest:
				use = DigestsOnly
			case use != "" && use != DigestsOnly && use != TagsOnly:
				return fmt.Errorf("pull-from-mirror is %q: it is all, digest-only or tag-only", use)
			}
			rule.Mirrors = append(rule.Mirrors, Mirror{Location: mirror.Location, Insecure: mirror.Insecure, For: use})
		}
		r.Rules = append(r.Rules, rule)
	}
	return nil
}

func (r *Registries) addDocker(data []byte) error {
	var file struct {
		Mirrors  []string `json:"registry-mirrors"`
		Insecure []string `json:"insecure-registries"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return err
	}
	// Docker has mirrors of its own registry only.
	hub := Rule{Prefix: dockerHub}
	for _, location := range file.Mirrors {
		hub.Mirrors = append(hub.Mirrors, Mirror{Location: location})
	}
	for _, registry := range file.Insecure {
		if network, err := netip.ParsePrefix(registry); err == nil {
			r.InsecureNetworks = append(r.InsecureNetworks, network)
		} else if registry != dockerHub {
			r.Rules = append(r.Rules, Rule{Prefix: registry, Insecure: true})
		}
	}
	if len(hub.Mirrors) > 0 {
		r.Rules = append(r.Rules, hub)
	}
	return nil
}
