package push

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/term"
)

// console is where the command reads and writes.
type console struct {
	human  io.Writer // stdout, or stderr with -json
	stdout io.Writer
	stderr io.Writer
	stdin  io.Reader
	bar    bool // stderr is a terminal that a progress bar may be drawn on
	ask    bool // stdin and stderr are a terminal
}

func newConsole(asJSON bool, stdin io.Reader, stdout, stderr io.Writer) *console {
	c := &console{human: stdout, stdout: stdout, stderr: stderr, stdin: stdin}
	if asJSON {
		c.human = stderr
	}
	c.bar = drawable(stderr)
	c.ask = isTerminal(stderr) && isTerminal(stdin)
	return c
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// drawable says whether a stream is a terminal on which what was written can be replaced.
func drawable(stream any) bool { return isTerminal(stream) && os.Getenv("TERM") != "dumb" }

// screen is the size of the terminal that a stream is, to be asked anew for each drawing; nil where nothing can be drawn, as on
// Windows, whose console knows the codes only when told to.
func screen(stream any) func() (width, height int) {
	if !drawable(stream) || runtime.GOOS == "windows" {
		return nil
	}
	fd := int(stream.(*os.File).Fd())
	return func() (int, int) {
		width, height, err := term.GetSize(fd)
		if err != nil || width < 1 || height < 1 { // such as a serial line, which does not know
			return 80, 24
		}
		return width, height
	}
}

// board tells a rollout to people.
func (c *console) board() *board { return &board{out: c.human, size: screen(c.human)} }

// say prints lines for people, without what instances or others may have put in to move a terminal's cursor.
func (c *console) say(format string, args ...any) {
	io.WriteString(c.human, plainLines(fmt.Sprintf(format, args...)))
}

// warn prints a line that should not be missed, also where stdout goes into a file.
func (c *console) warn(format string, args ...any) {
	io.WriteString(c.stderr, plainLines(fmt.Sprintf("push: warning: "+format, args...)))
}

// object prints the one JSON object.
func (c *console) object(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = fmt.Fprintf(c.stdout, "%s\n", text)
	return err
}

// prompt asks for a multi-factor code; nil where there is nobody to ask.
func (c *console) prompt() func(context.Context) (string, error) {
	if !c.ask {
		return nil
	}
	return func(ctx context.Context) (string, error) {
		fmt.Fprint(c.stderr, "Multi-factor code: ")
		type answer struct {
			line string
			err  error
		}
		// A read of a terminal cannot be cancelled; after an interrupt the process ends anyway.
		got := make(chan answer, 1)
		go func() {
			line, err := bufio.NewReader(c.stdin).ReadString('\n')
			got <- answer{line, err}
		}()
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case a := <-got:
			line := strings.TrimSpace(a.line)
			if line == "" && a.err == nil {
				a.err = errors.New("no code was given")
			}
			if line != "" {
				a.err = nil // a last line without its end
			}
			return line, a.err
		}
	}
}

// amount is a number of bytes for people, in powers of 1000.
func amount(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB"} {
		if v /= 1000; v < 999.95 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// count is a number of things: "1 instance", "3 instances".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// span is a duration as people say it: milliseconds below a second, a tenth of a second below a minute.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
