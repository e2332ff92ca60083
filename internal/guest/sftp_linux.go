package guest

import (
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// sftpName is the name that this program has as an SFTP server.
const sftpName = "smolvm-sftp"

// sftpMain serves the SFTP protocol on the standard input and output, from the working directory, if
// this process was started for it.
//
// That is done in a process of its own since the protocol lets a client wait for ever, for
// the writer of a pipe, say, and so that PID 1 has nothing to fear from it.
func sftpMain() {
	if os.Args[0] != sftpName {
		return
	}
	server, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout})
	if err == nil {
		err = server.Serve()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", sftpName, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// sftpCommand is the command that serves SFTP.
func sftpCommand(env []string, dir string) command {
	return command{program: "/proc/self/exe", argv: []string{sftpName}, env: env, dir: dir}
}
