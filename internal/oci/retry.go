package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// wait is how long to wait after so many failures in a row, from 1 on. Some chance in it keeps
// those who failed together from coming back together.
func (p Patience) wait(failures int) time.Duration {
	wait := p.MaxDelay
	if shift := failures - 1; shift < 20 && p.Delay<<shift < p.MaxDelay {
		wait = p.Delay << shift
	}
	return wait*3/4 + rand.N(wait/4+1)
}

// sleep waits, or fails when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// patient asks again what a server fails to answer for the moment: requests that get no
// connection or no answer, or one that says that it is the server's fault or that there are too
// many. What breaks later, in the body of an answer, is marked with errBroken.
type patient struct {
	next     http.RoundTripper
	patience Patience
	attempts int
	log      *slog.Logger
}

// errBroken is wrapped by errors about an answer that broke off.
var errBroken = errors.New("connection broke off")

// RoundTrip is http.RoundTripper's.
func (p *patient) RoundTrip(req *http.Request) (*http.Response, error) {
	for failures := 1; ; failures++ {
		resp, err := p.once(req)
		wait, again := p.again(req.Context(), resp, err, failures)
		if again && req.Context().Value(single{}) != nil {
			if err != nil {
				err = fmt.Errorf("%w: %w", errBroken, err)
			}
			return resp, err
		}
		if !again {
			return resp, err
		}
		attrs := []any{"host", req.URL.Host, "wait", wait, "failures", failures}
		if err != nil {
			attrs = append(attrs, "err", clean(redact(err).Error()))
		} else {
			attrs = append(attrs, "status", resp.StatusCode)
			_ = resp.Body.Close() // what it says is of no interest
		}
		p.log.Info("registry fails, ask it again", attrs...)
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
		if req.Body != nil {
			if req.GetBody == nil {
				return nil, errors.New("request cannot be made again")
			}
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// greeting marks the context of the requests that find out how a registry is spoken to. The library
// that makes them would read their answers to the end, even if they have none.
type greeting struct{}

// single marks the context of requests that must not be made again as they are. An answer that did
// not come, or may be another next time, is marked with errBroken.
type single struct{}

type readCloser struct {
	io.Reader
	io.Closer
}

// once makes the request with a watch on how long nothing comes.
func (p *patient) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	watch := time.AfterFunc(p.patience.Stall, func() { cancel(ErrStalled) })
	req = req.WithContext(ctx)
	if req.Body != nil {
		// As long as something is sent it does not stall.
		req.Body = readCloser{&told{Reader: req.Body, tell: func(int64) { watch.Reset(p.patience.Stall) }}, req.Body}
	}
	resp, err := p.next.RoundTrip(req)
	watch.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrStalled) {
			err = ErrStalled
		}
		cancel(nil)
		return nil, err
	}
	if ctx.Value(greeting{}) != nil {
		const limit = 1 << 20
		resp.Body = readCloser{io.LimitReader(resp.Body, limit), resp.Body}
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, watch: watch, stall: p.patience.Stall}
	return resp, nil
}

// again tells whether to ask again, and when.
func (p *patient) again(ctx context.Context, resp *http.Response, err error, failures int) (time.Duration, bool) {
	if failures >= p.attempts || ctx.Err() != nil {
		return 0, false
	}
	if err != nil {
		// Who gets no answer at all to the first question is told soon: the name may be wrong.
		const mostGreetings = 2
		first := ctx.Value(greeting{}) != nil
		return p.patience.wait(failures), isPassingError(err) && (!first || failures < mostGreetings)
	}
	if !isPassingStatus(resp.StatusCode) {
		return 0, false
	}
	if wait, given := retryAfter(resp.Header.Get("Retry-After"), time.Now()); given {
		return min(wait, p.patience.MaxDelay), true
	}
	return p.patience.wait(failures), true
}

// isPassingStatus tells whether an answer may be another one next time.
func isPassingStatus(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// isPassingError tells whether what prevented an answer may be another time.
func isPassingError(err error) bool {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case errors.Is(err, ErrPlainHTTP), errors.Is(err, http.ErrSchemeMismatch):
	case errors.As(err, &dns) && (dns.IsNotFound || !dns.IsTemporary && !dns.IsTimeout):
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &alert):
	default:
		return true
	}
	return false
}

// retryAfter reads the header of this name: seconds, or a date. The result is never negative.
func retryAfter(value string, now time.Time) (wait time.Duration, given bool) {
	const longest = 24 * 60 * 60 // more would overflow, and waits no less than a bound does
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		return time.Duration(min(seconds, longest)) * time.Second, true
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now)), true
	}
	return 0, false
}

// watchedBody is the body of an answer that must not stall.
type watchedBody struct {
	io.ReadCloser
	ctx    context.Context // that of the request, which lasts as long as the body
	cancel context.CancelCauseFunc
	watch  *time.Timer
	stall  time.Duration
}

// Read is io.Reader's. Only the time in it counts, not what the reader takes for the rest.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.Reset(b.stall)
	n, err := b.ReadCloser.Read(p)
	b.watch.Stop()
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.Is(context.Cause(b.ctx), ErrStalled):
		return n, fmt.Errorf("%w: %w", errBroken, ErrStalled)
	case b.ctx.Err() != nil:
		return n, b.ctx.Err()
	}
	return n, fmt.Errorf("%w: %w", errBroken, err)
}

// Close ends the request.
func (b *watchedBody) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}
