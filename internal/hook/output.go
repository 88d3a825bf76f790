package hook

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	tailSize  = 4 << 10      // kept of the output, and the longest line of the log
	pipeSize  = 64 << 10     // that Linux gives a pipe
	drainTime = time.Second  // for what the pipe still holds when the group is gone
	briefSize = 200          // of an error's message: a member's row and a status line have no more room
	chunkSize = 2 * tailSize // of one read
)

// output reads a command's output: lines to the log, the end of it into the tail.
type output struct {
	logger *slog.Logger
	heard  func() // at every read; may be nil

	read *os.File
	done chan struct{}
	line []byte // begun and not logged yet, under tailSize
	tail []byte // at most 2 * tailSize, of which the last tailSize count
}

func newOutput(logger *slog.Logger, name string) *output {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &output{logger: logger.With("hook", name), heard: func() {}, done: make(chan struct{})}
}

// pump reads until nobody holds the pipe's other end, or finish ends it.
func (o *output) pump(read *os.File) {
	o.read = read
	go func() {
		defer close(o.done)
		buf := make([]byte, chunkSize)
		for {
			n, err := read.Read(buf)
			o.take(buf[:n])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				o.rest(buf)
			}
			if err != nil {
				return
			}
		}
	}()
}

// rest takes what the pipe holds, without waiting for more: after its deadline Read no longer looks.
func (o *output) rest(buf []byte) {
	pipe, err := o.read.SyscallConn()
	if err != nil {
		return
	}
	_ = pipe.Control(func(fd uintptr) {
		for left := pipeSize; left > 0; {
			n, err := unix.Read(int(fd), buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 { // EAGAIN: it is empty
				return
			}
			o.take(buf[:n])
			left -= n
		}
	})
}

func (o *output) take(p []byte) {
	if len(p) == 0 {
		return
	}
	o.heard()
	o.keep(p)
	o.log(p)
}

// finish waits for the rest of the output, which is short when only a process that left the group
// still holds the pipe, and returns the tail.
func (o *output) finish() string {
	_ = o.read.SetReadDeadline(time.Now().Add(drainTime)) // never fails on a pipe of ours
	<-o.done
	_ = o.read.Close()
	if len(o.line) > 0 {
		o.emit(o.line)
	}
	return strings.ToValidUTF8(string(last(o.tail, tailSize)), "")
}

func (o *output) keep(p []byte) {
	o.tail = append(o.tail, last(p, tailSize)...)
	if len(o.tail) > 2*tailSize {
		o.tail = append(o.tail[:0], last(o.tail, tailSize)...)
	}
}

func (o *output) log(p []byte) {
	for len(p) > 0 {
		room := tailSize - len(o.line)
		part, rest := p[:min(room, len(p))], p[min(room, len(p)):]
		if i := bytes.IndexByte(part, '\n'); i >= 0 {
			part, rest = p[:i], p[i+1:]
			o.emit(append(o.line, part...))
			o.line, p = o.line[:0], rest
			continue
		}
		o.line, p = append(o.line, part...), rest
		if len(o.line) == tailSize {
			o.emit(o.line)
			o.line = o.line[:0]
		}
	}
}

func (o *output) emit(line []byte) {
	o.logger.Info("hook output", "line", strings.ToValidUTF8(strings.TrimSuffix(string(line), "\r"), "\uFFFD"))
}

func last(p []byte, n int) []byte { return p[max(0, len(p)-n):] }

// brief is head and the last line of the tail that says something, cut to briefSize.
func brief(head, tail string) string {
	line := strings.TrimSpace(tail)
	if i := strings.LastIndexByte(line, '\n'); i >= 0 {
		line = strings.TrimSpace(line[i+1:])
	}
	if line != "" {
		head += ": " + line
	}
	if len(head) <= briefSize {
		return head
	}
	cut := briefSize - len("…")
	for !utf8.RuneStart(head[cut]) {
		cut--
	}
	return head[:cut] + "…"
}
