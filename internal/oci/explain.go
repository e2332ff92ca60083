package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// explain says in people's words what a registry answered when it was asked for image, or why it
// did not.
func (c *connection) explain(image string, err error) error {
	var answer *transport.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &answer):
		return c.explainAnswer(image, answer)
	case strings.HasPrefix(err.Error(), "no token in bearer response"):
		// What follows is the whole answer, and that is meant to have secrets in it.
		return fmt.Errorf("%s gave no token", c.host)
	case errors.Is(err, ErrPlainHTTP) || errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("speak to %s: %w, as long as it is not said to be insecure: %w", c.host, ErrPlainHTTP, redact(err))
	}
	return fmt.Errorf("speak to %s: %w", c.host, redact(err))
}

func (c *connection) explainAnswer(image string, answer *transport.Error) error {
	said := []string{fmt.Sprintf("%d %s", answer.StatusCode, http.StatusText(answer.StatusCode))}
	for _, e := range answer.Errors {
		said = append(said, strings.TrimSpace(string(e.Code)+" "+e.Message))
	}
	words := clean(strings.Join(said, ", "))
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if c.pushes {
			return fmt.Errorf("%w: %s does not take %s from this user; if it is yours to push, run docker login %s or podman login %s (%s)",
				ErrAccess, c.host, image, c.host, c.host, words)
		}
		login := fmt.Sprintf("run docker login %s or podman login %s", c.host, c.host)
		if c.anonymous {
			return fmt.Errorf("%w: %s gives %s to nobody without a login; if there is such an image, %s (%s)",
				ErrAccess, c.host, image, login, words)
		}
		return fmt.Errorf("%w: %s does not give %s to the user whose login is stored; to log in anew, %s (%s)",
			ErrAccess, c.host, image, login, words)
	case http.StatusNotFound:
		if c.pushes {
			return fmt.Errorf("%w: %s has no place for %s (%s)", ErrNotFound, c.host, image, words)
		}
		if answer.Request != nil && strings.Contains(answer.Request.URL.Path, "/blobs/") {
			return fmt.Errorf("%w: a part of %s is not there in %s (%s)", ErrInvalid, image, c.host, words)
		}
		return fmt.Errorf("%w %s in %s (%s)", ErrNotFound, image, c.host, words)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%s wants fewer requests: try again later, or run docker login %s, as many give more to users (%s)", c.host, c.host, words)
	}
	return fmt.Errorf("%s failed: %s", c.host, words)
}
