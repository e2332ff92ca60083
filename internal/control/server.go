package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smolvm/smolvm/internal/forward"
	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/machine"
	"github.com/smolvm/smolvm/internal/sockdir"
)

// target is a VM that runs: the one that this process owns, or another process's.
type target interface {
	Info(ctx context.Context) (machine.Info, error)
	Start(ctx context.Context) error
	Stop(ctx context.Context, opts machine.StopOptions) error
	Kill(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Suspend(ctx context.Context) error
	Capture(ctx context.Context, dir string) error
	CaptureDisk(ctx context.Context, dir string) error
	Revert(ctx context.Context, snapshot string) error
	Delete(ctx context.Context) error
	Wait(ctx context.Context) (*machine.MainInfo, error)
	ChangeEnv(ctx context.Context, change machine.EnvChange) error
	StartCommand(ctx context.Context, c machine.Command) (machine.Process, error)
	Expose(ctx context.Context, reqs ...forward.Request) ([]forward.Forward, error)
	Unexpose(ctx context.Context, pairs ...forward.Pair) error
	ForwardEvents(ctx context.Context) (iter.Seq[forward.Event], error)
	WaitPort(ctx context.Context, req forward.Request) error
	Files(ctx context.Context, op guestapi.Files, in io.Reader, out io.Writer) error
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// server serves a VM that this process owns.
type server struct {
	vm      target
	log     *slog.Logger
	version string

	dir      *sockdir.Dir
	listener net.Listener
	done     chan struct{} // closed when no more clients are taken

	stopped  atomic.Bool  // this process is the owner no longer
	requests atomic.Int64 // under way

	mu       sync.Mutex
	lastID   int
	commands map[string]machine.Process // those that run, by ID
}

// serve serves vm on the socket in dir until stop is called. Requests that are under way then
// live on.
func serve(dir string, vm target, version string, log *slog.Logger) (*server, error) {
	d, err := sockdir.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("serve control: %w", err)
	}
	listener, err := d.Listener(context.Background(), socketName)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve control: %w", err), d.Close())
	}
	s := &server{vm: vm, log: log, version: version, dir: d, listener: listener, commands: make(map[string]machine.Process), done: make(chan struct{})}
	h := &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.done)
		if err := h.Serve(listener); !errors.Is(err, net.ErrClosed) {
			log.Warn("other processes cannot reach this VM any more", "error", err)
		}
	}()
	return s, nil
}

// stop takes no more clients.
func (s *server) stop() {
	s.stopped.Store(true)
	// The name goes first: who finds none knows that there is no owner. The directory may
	// have been removed, or renamed, by now.
	if err := errors.Join(s.dir.Remove(socketName), s.listener.Close(), s.dir.Close()); err != nil {
		s.log.Warn("could not end the service for other processes", "error", err)
	}
	<-s.done
}

// drain waits, for a while, until all clients have their answers: what they asked for may be
// the very thing that ends this process.
func (s *server) drain(limit time.Duration) {
	for end := time.Now().Add(limit); s.requests.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathVM, answer(func(r *http.Request) (machine.Info, error) { return s.vm.Info(r.Context()) }))
	mux.HandleFunc("POST "+pathStart, do(s.vm.Start))
	mux.HandleFunc("POST "+pathStop, answer(s.stopVM))
	mux.HandleFunc("POST "+pathKill, finish(s.vm.Kill))
	mux.HandleFunc("POST "+pathPause, do(s.vm.Pause))
	mux.HandleFunc("POST "+pathResume, do(s.vm.Resume))
	mux.HandleFunc("POST "+pathSuspend, do(s.vm.Suspend))
	mux.HandleFunc("POST "+pathCapture, take(s.capture))
	mux.HandleFunc("POST "+pathRevert, take(func(ctx context.Context, r revertRequest) error { return s.vm.Revert(ctx, r.Snapshot) }))
	mux.HandleFunc("POST "+pathDelete, finish(s.vm.Delete))
	mux.HandleFunc("GET "+pathWait, answer(s.wait))
	mux.HandleFunc("POST "+pathEnv, take(s.vm.ChangeEnv))
	mux.HandleFunc("POST "+pathForwards, answer(s.expose))
	mux.HandleFunc("POST "+pathUnexpose, take(func(ctx context.Context, r unexposeRequest) error { return s.vm.Unexpose(ctx, r.Pairs...) }))
	mux.HandleFunc("GET "+pathForwardEvents, s.forwardEvents)
	mux.HandleFunc("POST "+pathWaitPort, take(s.vm.WaitPort))
	mux.HandleFunc("POST "+pathCommands, s.command)
	mux.HandleFunc("POST "+pathSignal, s.signal)
	mux.HandleFunc("POST "+pathResize, s.resize)
	mux.HandleFunc("POST "+pathFiles, s.files)
	mux.HandleFunc("POST "+pathDial, s.dial)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		defer s.requests.Add(-1)
		header := w.Header()
		header.Set(headerAPI, apiVersion)
		header.Set(headerVersion, s.version)
		header.Set(headerPID, strconv.Itoa(os.Getpid()))
		if s.stopped.Load() {
			w.WriteHeader(http.StatusGone)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		mux.ServeHTTP(w, r)
	})
}

// answer handles a request that is answered with a value.
func answer[T any](ask func(*http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		value, err := ask(r)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, value)
	}
}

// do handles a request that says all by its path.
func do(f func(context.Context) error) http.HandlerFunc {
	return answer(func(r *http.Request) (struct{}, error) { return struct{}{}, f(r.Context()) })
}

// finish is do for what goes on though the client is gone: it is bounded in time by itself, and
// half of it is no good state.
func finish(f func(context.Context) error) http.HandlerFunc {
	return do(func(ctx context.Context) error { return f(context.WithoutCancel(ctx)) })
}

// take handles a request with a body.
func take[T any](f func(context.Context, T) error) http.HandlerFunc {
	return answer(func(r *http.Request) (struct{}, error) {
		var body T
		if err := readBody(r, &body); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, f(r.Context(), body)
	})
}

// readBody reads the body of a request. What it has too much is an error: this program would
// not do all that is asked for.
func readBody(r *http.Request, body any) error {
	// All of it is read, for what comes after it may be no HTTP any more.
	content, err := io.ReadAll(r.Body)
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(content))
		d.DisallowUnknownFields()
		err = d.Decode(body)
	}
	if err != nil {
		return fmt.Errorf("the VM's owner does not understand the request: %w", err)
	}
	return nil
}

// reply sends a value. That the client may be gone is its own affair.
func reply(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

func fail(w http.ResponseWriter, err error) {
	reply(w, http.StatusUnprocessableEntity, newProblem(err))
}

// stopVM is finish with a body, which clients of before do not send.
func (s *server) stopVM(r *http.Request) (struct{}, error) {
	var opts machine.StopOptions
	if r.ContentLength != 0 {
		if err := readBody(r, &opts); err != nil {
			return struct{}{}, err
		}
	}
	return struct{}{}, s.vm.Stop(context.WithoutCancel(r.Context()), opts)
}

func (s *server) wait(r *http.Request) (waitAnswer, error) {
	main, err := s.vm.Wait(r.Context())
	return waitAnswer{main}, err
}

func (s *server) expose(r *http.Request) ([]forward.Forward, error) {
	var body exposeRequest
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	return s.vm.Expose(r.Context(), body.Requests...)
}

// forwardEvents sends events, each on a line of its own, until the client or the VM goes.
func (s *server) forwardEvents(w http.ResponseWriter, r *http.Request) {
	events, err := s.vm.ForwardEvents(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	controller, lines := http.NewResponseController(w), json.NewEncoder(w)
	if controller.Flush() != nil {
		return
	}
	for e := range events {
		if lines.Encode(e) != nil || controller.Flush() != nil {
			return
		}
	}
}

func (s *server) capture(ctx context.Context, r captureRequest) error {
	if r.DiskOnly {
		return s.vm.CaptureDisk(ctx, r.Dir)
	}
	return s.vm.Capture(ctx, r.Dir)
}
