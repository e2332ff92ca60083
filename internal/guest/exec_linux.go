package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// exec serves a guestapi.ChannelExec channel.
func (s *Server) exec(ctx context.Context, p *peer, open ssh.NewChannel) {
	e, cmd, err := s.readExec(ctx, open.ExtraData())
	if err != nil {
		reject(open, err)
		return
	}
	if e.Detach {
		if err := s.startDetached(cmd, e.PowerOff); err != nil {
			reject(open, err)
			return
		}
		endDetached(open)
		return
	}
	j, err := s.startExec(e, cmd)
	if err != nil {
		reject(open, err)
		return
	}
	channel, requests, err := open.Accept()
	if err != nil {
		j.abandon()
		return
	}
	go j.run(p.conn, channel)
	for req := range requests {
		_ = req.Reply(j.request(req), nil)
	}
	j.hangUp()
}

// reject refuses a channel and tells the host why.
func reject(open ssh.NewChannel, err error) {
	_ = open.Reject(ssh.ConnectionFailed, string(refusal(err)))
}

// readExec reads what a host wants to run.
func (s *Server) readExec(ctx context.Context, payload []byte) (guestapi.Exec, command, error) {
	var e guestapi.Exec
	if err := guestapi.Decode(payload, &e); err != nil {
		return e, command{}, fmt.Errorf("read command: %w", err)
	}
	switch {
	case e.Detach && e.Terminal != nil:
		return e, command{}, errors.New("a detached command has no terminal")
	case e.PowerOff && !e.Detach:
		return e, command{}, errors.New("only the end of a detached command powers off")
	}
	cmd, err := s.command(ctx, e)
	return e, cmd, err
}

// command is the process that a host wants to have started.
func (s *Server) command(ctx context.Context, e guestapi.Exec) (command, error) {
	if err := s.system.Ready(ctx); err != nil {
		return command{}, err
	}
	u := rootUser(passwdFile)
	if e.User != "" {
		var err error
		if u, err = findUser(passwdFile, groupFile, e.User); err != nil {
			return command{}, err
		}
	}
	env := [][]string{u.env(), s.environment()}
	if e.Terminal != nil && e.Terminal.Term != "" {
		env = append(env, []string{"TERM=" + e.Terminal.Term})
	}
	cmd := loginShell(u, mergeEnv(append(env, e.Env)...), absolute(e.Dir, u.directory()))
	if len(e.Argv) > 0 {
		cmd.program, cmd.argv = e.Argv[0], e.Argv
	}
	return cmd, nil
}

// startExec starts a command that the host waits for.
func (s *Server) startExec(e guestapi.Exec, cmd command) (*job, error) {
	defer s.nudge.give()
	if t := e.Terminal; t != nil {
		return startTerminal(s.reaper, cmd, ptyRequest{Term: t.Term, Columns: extent(t.Columns), Rows: extent(t.Rows)})
	}
	return startPiped(s.reaper, cmd, e.Stdin)
}

// extent is a terminal's width or height, within what there can be.
func extent(n int) uint32 { return uint32(max(0, min(n, math.MaxUint16))) }

// startDetached starts a command that nobody waits for. The guest powers off at its end if
// asked to.
func (s *Server) startDetached(cmd command, powerOff bool) error {
	child, out, err := s.startLogged(cmd)
	if err != nil {
		return err
	}
	if powerOff {
		go func() {
			<-child.done
			out.commandEnded()
			s.log.Info("the command has ended", "program", cmd.program, "status", statusText(child.status))
			s.system.PowerOff()
		}()
	}
	return nil
}

// startLogged starts a command. What it writes goes to the console.
func (s *Server) startLogged(cmd command) (*child, *output, error) {
	defer s.nudge.give()
	from, to, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer to.Close()
	cmd.stdout, cmd.stderr = to, to
	child, err := cmd.start(s.reaper)
	if err != nil {
		from.Close()
		return nil, nil, err
	}
	// What the command leaves in the background writes to the console, too.
	return child, startOutput(from, struct{ io.Writer }{s.system.Console()}, false), nil
}

// statusText says how a command ended, to people.
func statusText(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal " + signalName(status.Signal())
	}
	return "exit code " + strconv.Itoa(status.ExitStatus())
}

// endDetached tells the host that a command was started, which is all that it waits for.
func endDetached(open ssh.NewChannel) {
	channel, requests, err := open.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	sendStatus(channel, 0)
	_ = channel.Close()
}
