package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// exec serves a guestapi.ChannelExec channel.
func (s *Server) exec(ctx context.Context, p *peer, open ssh.NewChannel) {
	j, err := s.startExec(ctx, open.ExtraData())
	if err != nil {
		message, _ := json.Marshal(failure(err)) // strings: cannot fail
		_ = open.Reject(ssh.ConnectionFailed, string(message))
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

func (s *Server) startExec(ctx context.Context, payload []byte) (*job, error) {
	var e guestapi.Exec
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, fmt.Errorf("read command: %w", err)
	}
	if len(e.Argv) == 0 {
		return nil, errors.New("the command is empty")
	}
	if err := s.system.Ready(ctx); err != nil {
		return nil, err
	}
	u := rootUser(passwdFile)
	cmd := command{
		program: e.Argv[0],
		argv:    e.Argv,
		dir:     absolute(e.Dir, u.directory()),
		env:     mergeEnv(u.env(), s.environment(), e.Env),
	}
	defer s.nudge.give()
	return startPiped(s.reaper, cmd, e.Stdin)
}

// session serves a "session" channel, as SSH has it.
type session struct {
	server *Server
	user   user
	env    []string
	pty    *ptyRequest
	job    *job // nil until it is started
}

func (s *Server) session(ctx context.Context, p *peer, open ssh.NewChannel) {
	if err := s.system.Ready(ctx); err != nil {
		_ = open.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := open.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	se := &session{server: s, user: rootUser(passwdFile)}
	for req := range requests {
		ok := se.request(req)
		_ = req.Reply(ok, nil)
		if ok && (req.Type == "exec" || req.Type == "shell") {
			go se.job.run(p.conn, channel)
		}
	}
	if se.job != nil {
		se.job.hangUp()
	}
}

func (se *session) request(req *ssh.Request) bool {
	if se.job != nil {
		return se.job.request(req)
	}
	switch req.Type {
	case "env":
		var e struct{ Name, Value string }
		if ssh.Unmarshal(req.Payload, &e) != nil {
			return false
		}
		se.env = append(se.env, e.Name+"="+e.Value)
		return true
	case "pty-req":
		var p ptyRequest
		if ssh.Unmarshal(req.Payload, &p) != nil {
			return false
		}
		se.pty = &p
		return true
	case "shell":
		return se.start(loginShell(se.user, se.environment(), se.user.directory()))
	case "exec":
		var e struct{ Line string }
		if ssh.Unmarshal(req.Payload, &e) != nil {
			return false
		}
		return se.start(shellCommand(e.Line, se.environment(), se.user.directory()))
	}
	return false
}

func (se *session) start(cmd command) bool {
	defer se.server.nudge.give()
	var err error
	if se.pty != nil {
		se.job, err = startTerminal(se.server.reaper, cmd, *se.pty)
	} else {
		se.job, err = startPiped(se.server.reaper, cmd, true)
	}
	if err != nil {
		se.server.log.Warn("could not start a session", "program", filepath.Base(cmd.program), "error", err)
	}
	return err == nil
}

func (se *session) environment() []string {
	env := [][]string{se.user.env(), se.server.environment()}
	if se.pty != nil {
		env = append(env, []string{"TERM=" + se.pty.Term})
	}
	return mergeEnv(append(env, se.env)...)
}
