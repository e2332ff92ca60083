package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/sockdir"
)

// client is another process's VM. It implements target. Its errors wrap errNoOwner if nobody
// serves the VM, so nothing was done, and errOwnerLost if the owner ended meanwhile.
//
// Each request has a connection of its own: one that is kept leads to who was the owner once.
type client struct {
	vm  string // its name, for people
	dir string
	log *slog.Logger
}

func newClient(vm, dir string, log *slog.Logger) *client { return &client{vm: vm, dir: dir, log: log} }

// connect connects to the owner.
func (c *client) connect(ctx context.Context) (net.Conn, error) {
	d, err := sockdir.Open(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoOwner
	} else if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // only looked things up in
	conn, err := d.Dial(ctx, socketName)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errNoOwner
	}
	return conn, err
}

// hangUp cancels a request whose outcome nobody waits for.
func hangUp(conn net.Conn) { _ = conn.Close() }

// takeBack cancels a request whose outcome matters: the owner sees the end of what this side
// sends, cancels the work and answers how it ended, which may be that it was done just before.
func takeBack(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(ownerTimeout))
	if half, ok := conn.(halfCloser); !ok || half.CloseWrite() != nil {
		_ = conn.Close()
	}
}

// exchange sends a request and returns the answer, whose status is to be want. The caller owes
// the connection a Close. If ctx ends before that, cancel is called with it, unless detach was.
func (c *client) exchange(ctx context.Context, cancel func(net.Conn), method, path string, body any, want int) (_ *exchange, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	x := &exchange{stream: stream{Conn: conn}, detach: context.AfterFunc(ctx, func() { cancel(conn) })}
	defer func() {
		if err != nil {
			_ = x.Close() // it is of no more use
		}
	}()
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	if body == nil {
		content = nil
	}
	// The host in its URL is of no meaning.
	req, err := http.NewRequestWithContext(ctx, method, "http://vm"+path, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	connection := "close"
	if want == http.StatusSwitchingProtocols {
		connection = "Upgrade"
		req.Header.Set("Upgrade", upgradeTo)
	}
	req.Header.Set("Connection", connection)
	if err := req.Write(conn); err != nil {
		return nil, c.lost(ctx, err)
	}
	reader := bufio.NewReader(conn)
	if x.answer, err = http.ReadResponse(reader, req); err != nil {
		return nil, c.lost(ctx, err)
	}
	x.reader = reader
	return x, c.check(ctx, x.answer, want)
}

// exchange is a request and its answer.
type exchange struct {
	stream // what follows the answer's header, if the connection was upgraded
	answer *http.Response
	detach func() bool // see client.exchange; false: ctx has ended
}

// Close ends the exchange.
func (x *exchange) Close() error {
	x.detach()
	return x.stream.Close()
}

// lost says what the failure of a connection means.
func (c *client) lost(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errNoOwner):
		return errNoOwner
	case errors.Is(err, errOwnerLost):
		return err
	}
	return fmt.Errorf("%w: %w", errOwnerLost, err)
}

// check returns the error that an answer is.
func (c *client) check(ctx context.Context, resp *http.Response, want int) error {
	api := resp.Header.Get(headerAPI)
	switch {
	case api == apiVersion && resp.StatusCode == want:
		return nil
	case resp.StatusCode == http.StatusGone:
		return errNoOwner
	case api != apiVersion || resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed:
		return versionError(c.vm, api, resp.Header.Get(headerVersion), resp.Header.Get(headerPID))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil {
		return c.lost(ctx, err)
	}
	return parseProblem(body)
}

// call sends a request and reads the answer, if it is wanted. When ctx ends, the request is taken
// back; call returns nil if it was too late for that.
func (c *client) call(ctx context.Context, method, path string, body, answer any) error {
	x, err := c.exchange(ctx, takeBack, method, path, body, http.StatusOK)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return ctx.Err() // the owner knows of no deadline
	}
	if err != nil {
		return err
	}
	defer x.Close() //nolint:errcheck // only read from
	if answer == nil {
		answer = &struct{}{}
	}
	if err := json.NewDecoder(x.answer.Body).Decode(answer); err != nil {
		return c.lost(ctx, fmt.Errorf("read answer: %w", err))
	}
	return nil
}

func (c *client) post(ctx context.Context, path string, body any) error {
	return c.call(ctx, http.MethodPost, path, body, nil)
}

func (c *client) Info(ctx context.Context) (machine.Info, error) {
	var info machine.Info
	err := c.call(ctx, http.MethodGet, pathVM, nil, &info)
	return info, err
}

func (c *client) Start(ctx context.Context) error  { return c.post(ctx, pathStart, nil) }
func (c *client) Kill(ctx context.Context) error   { return c.post(ctx, pathKill, nil) }
func (c *client) Pause(ctx context.Context) error  { return c.post(ctx, pathPause, nil) }
func (c *client) Resume(ctx context.Context) error { return c.post(ctx, pathResume, nil) }
func (c *client) Suspend(ctx context.Context) error {
	return c.post(ctx, pathSuspend, nil)
}

func (c *client) Capture(ctx context.Context, dir string) error {
	return c.post(ctx, pathCapture, captureRequest{Dir: dir})
}

// CaptureDisk is the owner's.
func (c *client) CaptureDisk(ctx context.Context, dir string) error {
	return c.post(ctx, pathCapture, captureRequest{Dir: dir, DiskOnly: true})
}

func (c *client) Revert(ctx context.Context, snapshot string) error {
	return c.post(ctx, pathRevert, revertRequest{snapshot})
}

func (c *client) Delete(ctx context.Context) error { return c.post(ctx, pathDelete, nil) }

// Stop has the owner stop the VM in order. If ctx ends before, it is killed, as by an owner
// in this process.
func (c *client) Stop(ctx context.Context, opts machine.StopOptions) error {
	bounded := context.WithoutCancel(ctx)
	killed := make(chan error, 1)
	tooLate := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(bounded, ownerTimeout)
		defer cancel()
		killed <- c.Kill(ctx)
	})
	err := c.post(bounded, pathStop, opts)
	if !tooLate() {
		return <-killed
	}
	return err
}

func (c *client) Wait(ctx context.Context) (*machine.MainInfo, error) {
	var answer waitAnswer
	err := c.call(ctx, http.MethodGet, pathWait, nil, &answer)
	return answer.Main, err
}

func (c *client) ChangeEnv(ctx context.Context, change machine.EnvChange) error {
	return c.post(ctx, pathEnv, change)
}

func (c *client) Expose(ctx context.Context, reqs ...forward.Request) ([]forward.Forward, error) {
	var forwards []forward.Forward
	if err := c.call(ctx, http.MethodPost, pathForwards, exposeRequest{reqs}, &forwards); err != nil {
		return nil, err
	}
	if len(forwards) != len(reqs) {
		return nil, fmt.Errorf("%w: %d forwards for %d requests", errFrame, len(forwards), len(reqs))
	}
	for i, f := range forwards {
		// The owner says so in its own log, which is not who asked.
		if want := reqs[i].HostPort; want != 0 && f.HostPort != want {
			forward.WarnMoved(c.log, reqs[i], f.Pair, forward.Holder(f.Protocol, want))
		}
	}
	return forwards, nil
}

func (c *client) Unexpose(ctx context.Context, pairs ...forward.Pair) error {
	return c.post(ctx, pathUnexpose, unexposeRequest{pairs})
}

func (c *client) ForwardEvents(ctx context.Context) (iter.Seq[forward.Event], error) {
	x, err := c.exchange(ctx, hangUp, http.MethodGet, pathForwardEvents, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	return func(yield func(forward.Event) bool) {
		defer x.Close() //nolint:errcheck // only read from
		lines := json.NewDecoder(x.answer.Body)
		for {
			var e forward.Event
			// Whatever ends the stream ends the events: the VM is gone, or its owner.
			if lines.Decode(&e) != nil || ctx.Err() != nil || !yield(e) {
				return
			}
		}
	}, nil
}

func (c *client) WaitPort(ctx context.Context, req forward.Request) error {
	err := c.post(ctx, pathWaitPort, req)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("wait for guest port %d: %w: %w", req.GuestPort, machine.ErrTimeout, err)
	}
	return err
}
