package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/smolvm/smolvm/internal/guestapi"
)

// ptyRequest is the payload of SSH's "pty-req".
type ptyRequest struct {
	Term          string
	Columns, Rows uint32
	Width, Height uint32 // in pixels
	Modes         string
}

// openPTY makes a pseudo-terminal: the master for the guest program, and the
// terminal for the command. The caller closes both.
func openPTY(req ptyRequest) (master, tty *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	var number int
	err = control(master, func(fd int) (err error) {
		if number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	err = control(tty, func(fd int) error {
		settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		applyModes(settings, []byte(req.Modes))
		return unix.IoctlSetTermios(fd, unix.TCSETS, settings)
	})
	if err == nil {
		err = resize(master, guestapi.WindowChange{Columns: req.Columns, Rows: req.Rows, Width: req.Width, Height: req.Height})
	}
	if err != nil {
		tty.Close()
		return nil, nil, fmt.Errorf("set up terminal: %w", err)
	}
	return master, tty, nil
}

// resize tells the terminal its size; who runs in it gets a SIGWINCH.
func resize(master *os.File, w guestapi.WindowChange) error {
	return control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{
			Row: uint16(w.Rows), Col: uint16(w.Columns), Xpixel: uint16(w.Width), Ypixel: uint16(w.Height),
		})
	})
}

func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	doErr := error(nil)
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// The terminal modes of SSH (RFC 4254, section 8) by what they change. The
// numbers are the protocol's.
func controlCharacter(mode byte) (index int, ok bool) {
	index, ok = map[byte]int{
		1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
		8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 18: unix.VDISCARD,
	}[mode]
	return index, ok
}

func modeFlag(t *unix.Termios, mode byte) (flags *uint32, bit uint32) {
	switch {
	case mode >= 30 && mode <= 42:
		return &t.Iflag, [...]uint32{
			unix.IGNPAR, unix.PARMRK, unix.INPCK, unix.ISTRIP, unix.INLCR, unix.IGNCR, unix.ICRNL,
			unix.IUCLC, unix.IXON, unix.IXANY, unix.IXOFF, unix.IMAXBEL, unix.IUTF8,
		}[mode-30]
	case mode >= 50 && mode <= 62:
		return &t.Lflag, [...]uint32{
			unix.ISIG, unix.ICANON, unix.XCASE, unix.ECHO, unix.ECHOE, unix.ECHOK, unix.ECHONL,
			unix.NOFLSH, unix.TOSTOP, unix.IEXTEN, unix.ECHOCTL, unix.ECHOKE, unix.PENDIN,
		}[mode-50]
	case mode >= 70 && mode <= 75:
		return &t.Oflag, [...]uint32{unix.OPOST, unix.OLCUC, unix.ONLCR, unix.OCRNL, unix.ONOCR, unix.ONLRET}[mode-70]
	}
	return nil, 0
}

// applyModes sets what an encoded list of SSH terminal modes asks for and this
// system knows. It stops at the list's end or where it makes no sense.
func applyModes(t *unix.Termios, modes []byte) {
	for len(modes) >= 5 && modes[0] > 0 && modes[0] < 160 {
		mode, value := modes[0], binary.BigEndian.Uint32(modes[1:])
		modes = modes[5:]
		if i, ok := controlCharacter(mode); ok {
			t.Cc[i] = byte(value)
			if value == 255 { // the protocol's "disabled"; Linux has 0
				t.Cc[i] = 0
			}
			continue
		}
		if flags, bit := modeFlag(t, mode); flags != nil {
			*flags &^= bit
			if value != 0 {
				*flags |= bit
			}
		}
	}
}
