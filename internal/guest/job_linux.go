package guest

import (
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
	"github.com/smolvm/smolvm/internal/guestapi/wire"
)

// job is a command that runs on an SSH channel.
type job struct {
	child   *child
	master  *os.File // of its terminal; nil without one
	stdin   *os.File // nil: the command has none
	outputs []jobOutput
}

// jobOutput is one of a job's outputs, before there is a channel to carry it to.
type jobOutput struct {
	from   *os.File
	stderr bool
}

// startPiped starts cmd with pipes.
func startPiped(r *Reaper, cmd command, stdin bool) (_ *job, err error) {
	var ours, theirs []*os.File
	defer func() {
		closeAll(theirs)
		if err != nil {
			closeAll(ours)
		}
	}()
	pipe := func(readers, writers *[]*os.File) (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err == nil {
			*readers, *writers = append(*readers, r), append(*writers, w)
		}
		return r, w, err
	}
	j := &job{}
	if stdin {
		if cmd.stdin, j.stdin, err = pipe(&theirs, &ours); err != nil {
			return nil, err
		}
	}
	out, cmdOut, err := pipe(&ours, &theirs)
	if err != nil {
		return nil, err
	}
	errOut, cmdErr, err := pipe(&ours, &theirs)
	if err != nil {
		return nil, err
	}
	cmd.stdout, cmd.stderr = cmdOut, cmdErr
	j.outputs = []jobOutput{{from: out}, {from: errOut, stderr: true}}
	if j.child, err = cmd.start(r); err != nil {
		return nil, err
	}
	return j, nil
}

// startTerminal starts cmd in a terminal of its own.
func startTerminal(r *Reaper, cmd command, req ptyRequest) (*job, error) {
	master, tty, err := openPTY(req)
	if err != nil {
		return nil, err
	}
	defer tty.Close()
	cmd.stdin, cmd.stdout, cmd.stderr, cmd.tty = tty, tty, tty, true
	c, err := cmd.start(r)
	if err != nil {
		master.Close()
		return nil, err
	}
	return &job{child: c, master: master, stdin: master, outputs: []jobOutput{{from: master}}}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// run connects the job to its channel, which is over conn, until the command has ended and the host
// was told how. It is called once, and the caller ends the job with hangUp if the
// host closes the channel before.
func (j *job) run(conn *wire.Conn, channel ssh.Channel) {
	if j.stdin != nil {
		go func() {
			_, _ = io.Copy(struct{ io.Writer }{j.stdin}, struct{ io.Reader }{channel})
			if j.master == nil {
				j.stdin.Close()
			}
		}()
	}
	var outputs []*output
	for _, o := range j.outputs {
		to := io.Writer(channel)
		if o.stderr {
			to = channel.Stderr()
		}
		outputs = append(outputs, startOutput(o.from, conn.Pace(to), j.master != nil))
	}
	<-j.child.done
	for _, o := range outputs {
		o.commandEnded()
	}
	switch {
	case j.master != nil:
		j.master.Close() // hangs up on those who still use the terminal
	case j.stdin != nil:
		j.stdin.Close() // ends the copying even if nobody reads
	}
	_ = channel.CloseWrite()
	sendStatus(channel, j.child.status)
	_ = channel.Close()
}

// abandon ends a job that never got its channel.
func (j *job) abandon() {
	j.hangUp()
	if j.stdin != nil {
		j.stdin.Close()
	}
	for _, o := range j.outputs {
		o.from.Close()
	}
}

// hangUp ends the command if it still runs. What it left in the background, in
// process groups of their own, lives on.
func (j *job) hangUp() {
	if j.master != nil {
		_ = j.child.signal(unix.SIGHUP)
		_ = j.child.signal(unix.SIGCONT)
		j.master.Close()
		return
	}
	_ = j.child.signal(unix.SIGKILL)
}

// request serves what a host asks of a running job. It reports whether it could.
func (j *job) request(req *ssh.Request) bool {
	switch req.Type {
	case "signal":
		var name struct{ Name string }
		if ssh.Unmarshal(req.Payload, &name) != nil {
			return false
		}
		sig := unix.SignalNum("SIG" + name.Name)
		return sig != 0 && j.child.signal(sig) == nil
	case "window-change":
		var size guestapi.WindowChange
		return j.master != nil && ssh.Unmarshal(req.Payload, &size) == nil && resize(j.master, size) == nil
	}
	return false
}

// sendStatus tells the host how a command ended.
func sendStatus(channel ssh.Channel, status unix.WaitStatus) {
	if !status.Signaled() {
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(status.ExitStatus())}))
		return
	}
	_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(guestapi.ExitSignal{
		Signal:     signalName(status.Signal()),
		CoreDumped: status.CoreDump(),
	}))
}

// signalName is the signal's name without "SIG", or its number if it has none.
func signalName(sig unix.Signal) string {
	if name := unix.SignalName(sig); len(name) > 3 {
		return name[3:]
	}
	return strconv.Itoa(int(sig))
}

// shellCommand is the command that runs a line of shell.
func shellCommand(line string, env []string, dir string) command {
	argv := []string{"/bin/sh", "-c", line}
	return command{program: argv[0], argv: argv, env: env, dir: dir}
}

// loginShell is the user's own shell, started as for a login.
func loginShell(u user, env []string, dir string) command {
	return command{program: u.shell, argv: []string{"-" + filepath.Base(u.shell)}, env: env, dir: dir, credential: u.credential}
}
