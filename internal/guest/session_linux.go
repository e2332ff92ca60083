package guest

import (
	"context"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

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
		if ok && (req.Type == "exec" || req.Type == "shell" || req.Type == "subsystem") {
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
	case "subsystem":
		var e struct{ Name string }
		if ssh.Unmarshal(req.Payload, &e) != nil || e.Name != "sftp" {
			return false
		}
		return se.start(sftpCommand(se.environment(), se.user.directory()))
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
