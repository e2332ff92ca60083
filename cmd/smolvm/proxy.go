package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/smolvm/smolvm"
)

func newProxyCommand(g *globals) *cobra.Command {
	var port int
	return &cobra.Command{
		Use:   "proxy VM [PORT]",
		Short: "Connect standard input and output to a port of a VM",
		Long: `Connect standard input and output to a TCP port of a VM's own localhost: 22, where its
SSH server is, unless another is given. No port of this host is opened for it. It
ends when both sides have ended.`,
		Example: `  ssh -o ProxyCommand='smolvm proxy web' root@web   # smolvm ssh-config has all of it
  printf 'GET / HTTP/1.0\r\n\r\n' | smolvm proxy web 8000`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := argsOfUse(cmd, args); err != nil {
				return err
			}
			port = sshPort
			if len(args) < 2 {
				return nil
			}
			var err error
			if port, err = strconv.Atoi(args[1]); err != nil || port < 1 || port > 65535 {
				return fmt.Errorf("PORT must be 1-65535, not %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: g.completeVMs(1, isRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), args[0], func(vm *smolvm.VM) error {
				conn, err := vm.Dial(cmd.Context(), net.JoinHostPort("localhost", strconv.Itoa(port)))
				if err != nil {
					return err
				}
				// SSH clients end their proxies by a signal.
				return endless(cmd.Context(), joinStreams(cmd.Context(), conn, os.Stdin, os.Stdout))
			})
		},
	}
}

// sshPort is where a guest's SSH server listens.
const sshPort = 22

// joinStreams carries data between a connection and two streams until both directions have
// ended, or one has failed, or ctx has ended. It closes the connection and out.
func joinStreams(ctx context.Context, conn net.Conn, in io.Reader, out io.WriteCloser) error {
	defer conn.Close() //nolint:errcheck // both directions have ended
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, in)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		// Who has ended reads no more, and that is its right.
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			err = nil
		}
		done <- err
	}()
	go func() {
		_, err := io.Copy(out, conn)
		done <- errors.Join(err, out.Close())
	}()
	var err error
	for range 2 {
		select {
		case one := <-done:
			err = one
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("carry data: %w", err)
		}
	}
	return nil
}
