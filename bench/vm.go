package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/guestbin"
	"github.com/smolvm/smolvm/internal/image"
	"github.com/smolvm/smolvm/internal/store"
	"github.com/smolvm/smolvm/internal/testworld"
	"github.com/smolvm/smolvm/internal/vmm/qemu"
)

// The things measured on every VM, and the limits they are held against.
const (
	coldStart   = "cold start to first Run"
	bootLimit   = "QEMU and kernel alone"
	warmRun     = "warm Run(true)"
	guestTrue   = "fork and exec in the guest"
	firstByte   = "expose to first byte"
	directByte  = "direct to first byte"
	unexposed   = "unexpose"
	stop        = "stop"
	remove      = "delete"
	closeVM     = "close (kill and delete)"
	warmRuns    = 50
	exposures   = 10
	guestPort   = 8000
	webServer   = "cd /srv && echo hello >index.html && python3 -m http.server 8000 &"
	guestSpawns = `python3 - <<'EOF'
import subprocess, time
n = 50
start = time.perf_counter()
for _ in range(n): subprocess.run(["/bin/sh", "-c", "true"])
print((time.perf_counter() - start) / n)
EOF`
)

// measureVMs measures the life of VMs, one after the other.
func measureVMs(ctx context.Context, set settings) (string, error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	dir := testworld.Scratch + "/bench"
	images := image.NewStore(image.Options{Dir: dir + "/images", Shared: []string{store.SystemImages()}, Log: slog.New(slog.DiscardHandler)})
	s := samples[time.Duration]{}
	// The first start also finds out about the host, once for all.
	warmUp, err := smolvm.Launch(ctx, smolvm.DataDir(dir), smolvm.ColdBoot())
	if err != nil {
		return "", err
	}
	if err := warmUp.Close(); err != nil {
		return "", err
	}
	var info smolvm.Info
	var memory int64
	for i := range set.vms {
		var err error
		if info, memory, err = round(ctx, dir, s, i%2 == 0); err != nil {
			return "", err
		}
		if err := bootAlone(ctx, s, images, info.VMM.Accelerator); err != nil {
			return "", err
		}
		progress("VM %d of %d", i+1, set.vms)
	}
	img, err := smolvm.Pull(ctx, "debian", smolvm.DataDir(dir))
	if err != nil {
		return "", err
	}
	guest, err := guestbin.Program()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# VMs\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`): %d VMs one after the other, medians. ", partVM, set.vms)
	fmt.Fprintf(&b, "%s, accelerator %s, %d MiB and %d processor a VM.\n\n", on, info.VMM.Accelerator, info.MemoryMiB, info.CPUs)
	fmt.Fprintf(&b, "| what | median | worst | against | ratio |\n|---|---:|---:|---|---:|\n")
	row := func(name, limit, limitText string) {
		fmt.Fprintf(&b, "| %s | %s | %s |", name, ms(s.median(name)), ms(s.most(name)))
		if limit == "" {
			fmt.Fprintf(&b, " | |\n")
			return
		}
		fmt.Fprintf(&b, " %s: %s | %.2f |\n", limitText, ms(s.median(limit)), over(s.median(name), s.median(limit)))
	}
	row(coldStart, bootLimit, "QEMU and the same kernel, to its first user program")
	row(warmRun, guestTrue, "starting `sh -c true` within the guest")
	row(firstByte, directByte, "the same request to the guest's address, nothing exposed")
	row(unexposed, "", "")
	row(stop, "", "")
	row(remove, "", "")
	row(closeVM, "", "")
	fmt.Fprintf(&b, "\n| size | |\n|---|---:|\n")
	fmt.Fprintf(&b, "| guest program | %.1f MB |\n", float64(guest.Size())/1e6)
	fmt.Fprintf(&b, "| image on disk | %d MB |\n", img.Size/1e6)
	fmt.Fprintf(&b, "| memory of an idle VM of %d MiB (PSS of its QEMU) | %d MB |\n", info.MemoryMiB, memory/1e6)
	return b.String(), nil
}

// round starts one VM, measures, and removes it, politely or not.
func round(ctx context.Context, dir string, s samples[time.Duration], polite bool) (info smolvm.Info, memory int64, err error) {
	var vm *smolvm.VM
	defer func() {
		if vm != nil {
			err = errors.Join(err, end(vm, s, polite))
		}
	}()
	if err := timed(s, coldStart, func() (err error) {
		if vm, err = smolvm.Launch(ctx, smolvm.DataDir(dir), smolvm.ColdBoot()); err != nil {
			return err
		}
		_, err = vm.Run(ctx, "true")
		return err
	}); err != nil {
		return info, 0, err
	}
	if info, err = vm.Info(ctx); err != nil {
		return info, 0, err
	}
	if memory, err = pss(info.VMM.PID); err != nil {
		return info, 0, err
	}
	for range warmRuns {
		if err := timed(s, warmRun, func() error { _, err := vm.Run(ctx, "true"); return err }); err != nil {
			return info, 0, err
		}
	}
	spawn, err := seconds(vm.Run(ctx, guestSpawns))
	if err != nil {
		return info, 0, err
	}
	s.add(guestTrue, spawn)
	if _, err := vm.Run(ctx, webServer); err != nil {
		return info, 0, err
	}
	if err := vm.WaitPort(ctx, guestPort); err != nil {
		return info, 0, err
	}
	return info, memory, exposeAgain(ctx, vm, s)
}

// exposeAgain exposes a port again and again, and holds each first request against
// one that goes to the guest's address.
func exposeAgain(ctx context.Context, vm *smolvm.VM, s samples[time.Duration]) error {
	direct := net.JoinHostPort(vm.IP().String(), strconv.Itoa(guestPort))
	if _, err := request(direct); err != nil { // the server's first request is slower than the others
		return err
	}
	for range exposures {
		if err := timed(s, directByte, func() error { _, err := request(direct); return err }); err != nil {
			return err
		}
		var port int
		if err := timed(s, firstByte, func() (err error) {
			if port, err = vm.ExposeLocal(ctx, guestPort); err != nil {
				return err
			}
			_, err = request(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			return err
		}); err != nil {
			return err
		}
		if err := timed(s, unexposed, func() error { return vm.UnexposeLocal(ctx, port, guestPort) }); err != nil {
			return err
		}
	}
	return nil
}

// end ends a VM and times it.
func end(vm *smolvm.VM, s samples[time.Duration], polite bool) error {
	if !polite {
		return timed(s, closeVM, vm.Close)
	}
	ctx := context.Background()
	return errors.Join(
		timed(s, stop, func() error { return vm.Stop(ctx) }),
		timed(s, remove, func() error { return vm.Delete(ctx) }),
		vm.Close(),
	)
}

// bootAlone times QEMU and the kernel without SmolVM around them.
func bootAlone(ctx context.Context, s samples[time.Duration], images *image.Store, accelerator smolvm.Accelerator) error {
	img, err := images.Get("debian")
	if err != nil {
		return err
	}
	guest, err := guestbin.Program()
	if err != nil {
		return err
	}
	initrd, err := images.Initrd(ctx, img, guest)
	if err != nil {
		return err
	}
	driver := qemu.NewDriver(qemu.Options{CacheDir: testworld.Scratch, ProbeTimeout: time.Minute})
	return timed(s, bootLimit, func() error { return driver.UserSpace(ctx, img.Kernel, initrd, accelerator) })
}

func seconds(res *smolvm.Result, err error) (time.Duration, error) {
	if err != nil {
		return 0, err
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(res.Stdout), 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, res.Stderr)
	}
	return time.Duration(f * float64(time.Second)), nil
}

func request(address string) ([]byte, error) {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// pss is a process's proportional share of memory in bytes.
func pss(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "Pss:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no Pss of process %d", pid)
}
