package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// system is the guest itself, as a Server sees it.
type system struct {
	log     *slog.Logger
	console io.Writer
	server  *Server // set before anything is served

	ready    chan struct{} // closed once the root file system is there, or never will be
	bootErr  error         // why it never will be; for after ready
	powerOff func()

	mu      sync.Mutex // held while an identity is applied
	settled bool       // it has an identity
	// bare is the network interface while it is known to be without addresses: since it was taken
	// them no command has run.
	bare     *net.Interface
	listener net.Listener
	address  netip.Addr // where listener listens
}

// booted tells that the boot has ended, with err if it failed.
func (s *system) booted(err error) {
	s.bootErr = err
	close(s.ready)
}

func (s *system) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return s.bootErr
	case <-ctx.Done():
		return fmt.Errorf("wait for the guest to boot: %w", ctx.Err())
	}
}

func (s *system) PowerOff() { s.powerOff() }

func (s *system) StepClock(step time.Duration) (time.Time, error) {
	now := time.Now()
	if step == 0 {
		return now, nil
	}
	return now.Add(step), setClock(now.Add(step))
}

const machineIDFile = "/etc/machine-id"

// Rehearse does what Configure does, for an identity that is then forgotten: all that this needs
// is in memory afterwards, and the files are there.
func (s *system) Rehearse(ctx context.Context, id guestapi.Identity) error {
	own, err := readMachineID(machineIDFile)
	if err != nil {
		return err
	}
	if err := s.Configure(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		s.listener.Close()
	}
	s.listener, s.settled = nil, false
	if own == "" {
		err = overwriteFile(machineIDFile, []byte(noMachineID+"\n"), 0o444)
	}
	link, linkErr := bareEthernet()
	s.bare = link
	return errors.Join(err, linkErr)
}

func (s *system) Rest() {
	if err := ensureFilesystem(folderModule); err != nil {
		s.log.Debug("copies of this guest cannot have folders of the host", "error", err)
	}
	awaitClockSource(clockSourceFile, clockSourceLimit)
	s.Sync()
	debug.FreeOSMemory()
}

func (s *system) Sync() { unix.Sync() }

func (s *system) Console() io.Writer { return s.console }

// Configure applies what it can and returns all that went wrong.
func (s *system) Configure(_ context.Context, id guestapi.Identity) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if !id.Time.IsZero() {
		errs = append(errs, setClock(id.Time)) // first: it goes stale
	}
	if len(id.Entropy) > 0 {
		errs = append(errs, creditEntropy(id.Entropy))
	}
	if err := unix.Sethostname([]byte(id.Hostname)); err != nil {
		errs = append(errs, fmt.Errorf("set host name: %w", err))
	}
	write := replaceFile
	if !s.settled {
		write = overwriteFile // no command runs yet
	}
	s.settled = true
	errs = append(errs, writeEtc("/etc", id, write), s.configureNetwork(id.Network))
	if id.GrowRoot {
		errs = append(errs, growRoot("/", rootDevice))
	}
	s.listen(id.Network)
	return errors.Join(errs...)
}

// configureNetwork looks for the interface only if it is not known.
func (s *system) configureNetwork(n *guestapi.Network) error {
	if link := s.bare; link != nil {
		s.bare = nil
		return configureNetwork(link, n, true)
	}
	link, err := ethernet()
	if err != nil {
		return err
	}
	return configureNetwork(link, n, false)
}

// listen serves SSH on the guest's network address, and no longer on the one
// before. Without a network that is loopback's: the host reaches either through the
// guest channel, as localhost. A guest whose user runs another SSH server there keeps
// that one.
func (s *system) listen(n *guestapi.Network) {
	address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if n != nil {
		address = n.Address.Addr()
	}
	if address == s.address && s.listener != nil {
		return
	}
	if s.listener != nil {
		s.listener.Close()
	}
	s.listener, s.address = nil, address
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, guestapi.SSHPort)))
	if err != nil {
		s.log.Warn("no SSH server", "address", address.String(), "error", err)
		return
	}
	s.listener = l
	go func() {
		err := s.server.ServeNetwork(l)
		if !errors.Is(err, net.ErrClosed) {
			s.log.Warn("the SSH server ended", "error", err)
		}
	}()
}
