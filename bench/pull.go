package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/smolvm/smolvm/internal/oci/registrytest"
	"github.com/smolvm/smolvm/internal/testworld"
)

// What is pulled, and by whom.
const (
	pullLayers   = 8
	filesInLayer = 2_500
	fileSize     = 16 << 10 // on average
	pullRounds   = 3

	pullNew     = "a new image"
	pullUpdate  = "another version, of which one layer of %d is new"
	pullPeer    = "skopeo and umoci: "
	fetchPeer   = "skopeo alone: "
	benchedName = "bench/app"
)

// measurePulls measures how long it takes from a registry to an image that VMs can be made on.
func measurePulls(ctx context.Context, set settings) (_ string, err error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	dir := testworld.Scratch + "/pull"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	registry, err := registrytest.New(dir, "")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, registry.Kill(), os.RemoveAll(dir)) }()
	packed, plain, err := pushVersions(registry)
	if err != nil {
		return "", err
	}
	p := puller{registry: registry.Addr, dir: dir, peers: tools{set.peers}, s: samples[time.Duration]{}}
	if p.program, err = filepath.Abs("bin/smolvm"); err != nil {
		return "", err
	}
	for i := range pullRounds {
		progress("pull %d of %d", i+1, pullRounds)
		if err := p.round(ctx, i%2 == 0); err != nil {
			return "", err
		}
	}
	versions, err := p.peers.versions("skopeo", "umoci")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Pulls\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`) on %s. %d layers compressed by gzip, %d files, %d MB, %d MB when they are unpacked; "+
		"from a registry on the loopback to memory. %d rounds in turn, medians. SmolVM ends with a filesystem for VMs, the peers with files in a directory. Peers: %s.\n\n",
		partPull, on, pullLayers, pullLayers*filesInLayer, packed/1e6, plain/1e6, pullRounds, versions)
	var lines []comparison
	for _, what := range []string{pullNew, pullUpdate} {
		name := what
		if what == pullUpdate {
			name = fmt.Sprintf(pullUpdate, pullLayers)
		}
		for _, peer := range []string{pullPeer, fetchPeer} {
			ours, theirs := p.s.median(what), p.s.median(peer+what)
			reach := target{}
			if peer == pullPeer {
				reach = atMost(1)
			}
			lines = append(lines, comparison{name, ms(ours), peer + ms(theirs), over(ours, theirs), reach})
		}
	}
	comparisons(&b, lines)
	fmt.Fprintf(&b, "Most memory that `smolvm pull` takes: %d MB.\n", p.memory/1e6)
	return b.String(), nil
}

// pushVersions pushes two versions of an image, and returns how many bytes the layers of one have,
// as they are stored and unpacked.
func pushVersions(registry *registrytest.Server) (packed, plain int64, err error) {
	var layers []v1.Layer
	for i := range pullLayers + 1 {
		layer, size, err := benchLayer(uint64(i))
		if err != nil {
			return 0, 0, err
		}
		layers = append(layers, layer)
		stored, err := layer.Size()
		if err != nil {
			return 0, 0, err
		}
		if i < pullLayers {
			packed, plain = packed+stored, plain+size
		}
	}
	for version, of := range map[string][]v1.Layer{
		"1": layers[:pullLayers], "2": append(layers[:pullLayers-1:pullLayers-1], layers[pullLayers]),
	} {
		img, err := mutate.AppendLayers(empty.Image, of...)
		if err == nil {
			img, err = mutate.ConfigFile(img, configFor(img))
		}
		if err == nil {
			err = registry.Push(benchedName+":"+version, img)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return packed, plain, nil
}

// configFor is the configuration of an image, for this platform.
func configFor(img v1.Image) *v1.ConfigFile {
	about, err := img.ConfigFile()
	if err != nil {
		return &v1.ConfigFile{}
	}
	about = about.DeepCopy()
	about.OS, about.Architecture = "linux", "amd64"
	return about
}

// benchLayer makes a layer of files that compress to about a third, as programs do.
func benchLayer(seed uint64) (v1.Layer, int64, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	chance := rand.New(rand.NewPCG(seed, 0))
	size := int64(0)
	for i := range filesInLayer {
		data := make([]byte, fileSize/2+chance.IntN(fileSize))
		for at := range data {
			data[at] = byte(chance.IntN(6) * chance.IntN(6))
		}
		name := fmt.Sprintf("usr/lib/l%d/d%d/f%d", seed, i/100, i)
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			return nil, 0, err
		}
		size += int64(len(data))
	}
	if err := w.Close(); err != nil {
		return nil, 0, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithCompressedCaching)
	return layer, size, err
}

// puller pulls the two versions, by SmolVM and by its peers.
type puller struct {
	registry, dir, program string
	peers                  tools
	s                      samples[time.Duration]
	memory                 int64 // the most that ours took, in bytes
}

// round has each pull both versions to places where there is nothing yet.
func (p *puller) round(ctx context.Context, oursFirst bool) error {
	all := []func(context.Context) error{p.ours, p.theirs}
	if !oursFirst {
		all[0], all[1] = all[1], all[0]
	}
	for _, pull := range all {
		if err := pull(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *puller) ours(ctx context.Context) error {
	data := filepath.Join(p.dir, "data")
	for version, what := range []string{pullNew, pullUpdate} {
		cmd := exec.CommandContext(ctx, p.program, "pull", "--json", fmt.Sprintf("%s/%s:%d", p.registry, benchedName, version+1))
		cmd.Env = append(os.Environ(), "SMOLVM_DATA_DIR="+data)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := timed(p.s, what, func() error {
			if err := cmd.Start(); err != nil {
				return err
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			return p.watch(cmd.Process.Pid, ended)
		})
		if err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
	}
	return os.RemoveAll(data)
}

// watch waits for the end of a process, and looks how much memory it takes. What the kernel tells
// in the end would count what this process had when it started that one.
func (p *puller) watch(pid int, ended <-chan error) error {
	const every = 5 * time.Millisecond
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ticker.C:
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				continue // it ends
			}
			var peak int64
			if _, after, found := strings.Cut(string(status), "VmHWM:"); found {
				if _, err := fmt.Sscan(after, &peak); err == nil {
					p.memory = max(p.memory, peak<<10)
				}
			}
		}
	}
}

func (p *puller) theirs(ctx context.Context) error {
	dir := filepath.Join(p.dir, "peers")
	for version, what := range []string{pullNew, pullUpdate} {
		tag := fmt.Sprint(version + 1)
		copied, err := p.peers.command("usr/bin/skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
			fmt.Sprintf("docker://%s/%s:%s", p.registry, benchedName, tag), "oci:"+dir+"/layout:"+tag)
		if err != nil {
			return err
		}
		unpacked, err := p.peers.command("usr/bin/umoci", "unpack", "--image", dir+"/layout:"+tag, dir+"/bundle"+tag)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		start := time.Now()
		if err := timed(p.s, fetchPeer+what, func() error { return runQuietly(copied) }); err != nil {
			return err
		}
		if err := runQuietly(unpacked); err != nil {
			return err
		}
		p.s.add(pullPeer+what, time.Since(start))
	}
	return os.RemoveAll(dir)
}

// runQuietly runs a program, and tells what it said if it fails.
func runQuietly(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Path, err, out)
	}
	return nil
}
