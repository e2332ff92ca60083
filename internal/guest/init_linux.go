package guest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootTimeout bounds the wait for a device during boot. A device that is not there
// by then is not there.
const bootTimeout = 10 * time.Second

// newRoot is where the root file system is mounted before it becomes the root.
const newRoot = "/newroot"

// userSpace is printed as soon as the guest program runs. The host looks for it
// to learn whether an accelerator works.
const userSpace = "smolvm-guest: user space\n"

// poweringOff is printed when the guest begins to power off.
const poweringOff = "smolvm-guest: powering off\n"

// probeParameter on the kernel's command line ends the boot there.
const probeParameter = "smolvm.probe"

// Main boots the guest and serves it until it powers off. It does not return in a
// process that is PID 1, nor where HelperMain does not; in any other it changes nothing and
// returns an error.
func Main() error {
	HelperMain()
	if os.Getpid() != 1 {
		return fmt.Errorf("this program boots a SmolVM guest: it must be PID 1")
	}
	RelaxCollector()
	neverAlone()
	b := &boot{off: make(chan struct{}, 1)}
	mountErr := mountAll("/", earlyMounts())
	b.openConsole()
	if mountErr != nil {
		b.log.Error("early mounts failed", "error", mountErr)
	}
	fmt.Fprint(b.console, userSpace)
	if probing() {
		return b.end()
	}
	b.reaper = NewReaper()
	b.catchSignals()
	b.serve()
	<-b.off
	_, _ = b.console.WriteString(poweringOff) // as plain as it can be: somebody waits for the end
	b.reaper.startNoMore()
	endProcesses(b.reaper, b.log)
	settleRoot(b.log)
	return b.end()
}

// boot is what Main knows.
type boot struct {
	console *os.File
	log     *slog.Logger
	reaper  *Reaper
	off     chan struct{} // has a token once the guest is to power off
}

// minProcessors is how many threads may run Go code at once, at least. One of them may just have
// begun to wait in the kernel for what the host says next: were it the only one, what it has read
// last would wait with it until the runtime finds out, which takes up to ten milliseconds.
const minProcessors = 2

// neverAlone has more than one thread run Go code even on one processor.
func neverAlone() { runtime.GOMAXPROCS(max(minProcessors, runtime.NumCPU())) }

// openConsole makes the console what the program logs to. Without one there is
// nobody to tell.
func (b *boot) openConsole() {
	var err error
	if b.console, err = os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0); err != nil {
		b.console = os.Stderr
	}
	b.log = slog.New(slog.NewTextHandler(b.console, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				// The time of day is not known yet. The kernel counts from its start, too.
				return slog.Duration("uptime", uptime())
			}
			return a
		},
	}))
}

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano()).Round(time.Millisecond)
}

func probing() bool {
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(line)), probeParameter)
}

// end turns the machine off. If even that fails, PID 1 must not end.
func (b *boot) end() error {
	err := powerOff()
	b.log.Error("still there", "error", err)
	select {}
}

// requestPowerOff makes Main go on to power off.
func (b *boot) requestPowerOff() {
	select {
	case b.off <- struct{}{}:
	default: // it does already
	}
}

// catchSignals keeps signals that anyone in the guest may send from ending PID 1,
// which the kernel does not survive. Those that ask other inits to power off or
// reboot do so here: the host lets both end the VM. Signals are caught and not
// ignored since commands would inherit that.
func (b *boot) catchSignals() {
	powerOff := []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGPWR, unix.SIGUSR1, unix.SIGUSR2}
	others := []os.Signal{unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, powerOff...)
	signal.Notify(make(chan os.Signal, 1), others...)
	go func() {
		for range asked {
			b.requestPowerOff()
		}
	}()
}

// serve loads the modules, mounts the root file system, and serves the host from
// as early as that is possible: it is told even why the rest failed.
func (b *boot) serve() {
	sys := &system{log: b.log, console: b.console, ready: make(chan struct{}), powerOff: b.requestPowerOff}
	sys.server = NewServer(sys, b.reaper, b.log)
	moduleErr := loadModules("/modules.list")
	if moduleErr != nil {
		b.log.Error("not all modules were loaded", "error", moduleErr)
	}
	b.log.Info("modules loaded")
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	// The port is opened here, since it is found through directories that the change
	// of root moves.
	port, err := openPort(ctx, "/sys", "/dev")
	if err != nil {
		b.log.Error("the host cannot reach this guest", "error", err)
	} else {
		b.log.Info("channel open")
		go func() {
			err := sys.server.ServeChannel(port, func(entropy []byte) {
				if err := creditEntropy(entropy); err != nil {
					b.log.Warn("could not take the host's entropy", "error", err)
				}
			})
			b.log.Error("the guest channel failed", "error", err)
		}()
	}
	go func() {
		defer cancel()
		err := b.mountRoot(ctx)
		if err != nil {
			b.log.Error("boot failed", "error", err)
		} else {
			b.log.Info("root mounted")
		}
		sys.booted(err)
	}()
}

// mountRoot makes the disk the root, with all that programs expect in it.
func (b *boot) mountRoot(ctx context.Context) error {
	_, err := awaitDevice(ctx, func() (os.FileInfo, error) { return os.Stat(rootDevice) })
	if err != nil {
		return fmt.Errorf("find root disk %s: %w", rootDevice, err)
	}
	if err := mountAll("/", []mount{rootMount(newRoot)}); err != nil {
		return err
	}
	if err := switchRoot(newRoot, []string{"/modules", "/modules.list", "/init"}); err != nil {
		return err
	}
	// From here on the guest is of use even if something is missing.
	for what, err := range map[string]error{
		"mounts":      mountAll("/", lateMounts()),
		"devices":     deviceLinks("/dev"),
		"directories": directories("/"),
		"loopback":    loopbackUp(),
		"IPv6":        withoutIPv6(),
		"limits":      raiseLimits(),
	} {
		if err != nil {
			b.log.Error("boot is incomplete", "part", what, "error", err)
		}
	}
	return nil
}
