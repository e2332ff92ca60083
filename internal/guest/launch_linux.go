package guest

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// launcherName is the name that this program has when it becomes another one.
	launcherName = "smolvm-launch"
	// launcherArgs is how many arguments come before the other program's own: the launcher's name, a
	// directory and the program.
	launcherArgs = 3
	// launchReport is the file in which the launcher tells why it could not.
	launchReport = 3
	// launchFailed is how it ends then.
	launchFailed = 127
)

// launchMain becomes the program that the arguments tell, if this process is a launcher.
func launchMain() {
	if os.Args[0] != launcherName || len(os.Args) <= launcherArgs {
		return
	}
	unix.CloseOnExec(launchReport)
	err := unix.Chdir(os.Args[1])
	if err == nil {
		err = syscall.Exec(os.Args[2], os.Args[launcherArgs:], os.Environ())
	}
	code, _ := err.(unix.Errno)
	fmt.Fprint(os.NewFile(launchReport, "report"), int(code))
	os.Exit(launchFailed)
}

// launch starts a process by way of a launcher, which is this program. While a process starts, this
// one waits for it with all that it does, until the new program and its directory are opened. If
// these are in a folder of the host it is this process that has to get them.
func (r *Reaper) launch(program string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	report, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	own := *attr
	own.Dir, own.Files = "", append(append([]uintptr{}, attr.Files...), theirs.Fd())
	c, err := r.fork("/proc/self/exe", append([]string{launcherName, attr.Dir, program}, argv...), &own)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	failure, err := io.ReadAll(report)
	if err == nil && len(failure) == 0 {
		return c, nil
	}
	<-c.done
	if code, convErr := strconv.Atoi(string(failure)); convErr == nil && code > 0 {
		return nil, unix.Errno(code)
	}
	return nil, fmt.Errorf("launch: %w", unix.EIO)
}
