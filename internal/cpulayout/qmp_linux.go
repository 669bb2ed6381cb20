package cpulayout

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	maxLineBytes = 64 << 10 // of one message; a greeting is 200 bytes
	maxMessages  = 64       // before an answer: the greeting, events
)

// qmp is the little that Learn says to a monitor. Its connection bounds it in time.
type qmp struct {
	conn *net.UnixConn
	in   *bufio.Reader
}

// command sends one line, a descriptor with it if there is one, and waits for the answer.
func (q *qmp) command(line string, f *os.File) error {
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	if _, _, err := q.conn.WriteMsgUnix([]byte(line+"\n"), rights, nil); err != nil {
		return fmt.Errorf("monitor: %s: %w", line, ended(err))
	}
	if q.in == nil {
		q.in = bufio.NewReaderSize(q.conn, maxLineBytes)
	}
	for range maxMessages {
		raw, err := q.in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("monitor: %s: %w", line, ended(err))
		}
		var m struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		switch err = json.Unmarshal(raw, &m); {
		case err != nil:
			return fmt.Errorf("monitor: %s: %w", line, err)
		case m.Error != nil:
			return fmt.Errorf("monitor: %s: %s", line, m.Error.Desc)
		case m.Return != nil:
			return nil
		}
	}
	return fmt.Errorf("monitor: %s: no answer in %d messages", line, maxMessages)
}

// ended says in words what a socket says when nobody is there.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return errors.New("QEMU has ended")
	}
	return err
}
