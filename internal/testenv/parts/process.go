package parts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command says what to start.
type Command struct {
	Name string   // what messages call it, and the name of its log
	Path string   // the executable
	Args []string // without the executable's own name
	Dir  string   // working directory; empty: ours
	Env  []string // the whole environment; nil: ours
	Log  string   // file that gets stdout and stderr, appended; required
	// Death is the signal that the process gets when we die, however we die; zero: SIGKILL. A server
	// whose children outlive a killed parent (nginx, php-fpm) wants SIGTERM here.
	Death syscall.Signal
}

// Process is a started [Command] in a process group of its own.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; to be read after done
}

// Start starts a command. A terminal's Ctrl-C does not reach it: who starts a process stops it.
func Start(c Command) (*Process, error) {
	out, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: open log: %w", c.Name, err)
	}
	defer out.Close()

	death := c.Death
	if death == 0 {
		death = syscall.SIGKILL
	}
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.Dir, c.Env, out, out
	cmd.SysProcAttr = attributes(death)
	if err := StartOnLastingThread(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	p := &Process{name: c.Name, log: c.Log, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// starts hands commands to the one thread that starts all processes.
var starts = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread() // and never unlocked: this thread lives as long as we do
		for f := range work {
			f()
		}
	}()
	return work
})

// StartOnLastingThread starts cmd on a thread that never ends. The kernel sends Pdeathsig when the
// thread that forked dies, not the process, and Go may end a thread at any time.
func StartOnLastingThread(cmd *exec.Cmd) error {
	result := make(chan error)
	starts() <- func() { result <- cmd.Start() }
	return <-result
}

// Pid is the process id, which is its group's id too.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err waits for the end and says how it ended: nil for exit code 0.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the process alone. A process that has ended already is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Stop ends the process with SIGTERM and, when it is still there after grace, its whole group with
// SIGKILL, which is an error. It returns when the process is gone.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
		p.Kill()
		return fmt.Errorf("stop %s: still running %v after SIGTERM, killed", p.name, grace)
	}
}

// Kill ends the process and its group with SIGKILL and returns when the process is gone.
func (p *Process) Kill() {
	select {
	case <-p.done: // its number may be somebody else's by now
		return
	default:
	}
	_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	<-p.done
}

// Await asks ready every 20 ms until it says yes (nil). It fails when the context ends or the process
// does, with ready's last answer and the end of the log.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		select {
		case <-p.done: // whoever answers is another one
			return fmt.Errorf("wait for %s: ended (%v): %s", p.name, p.err, p.Tail())
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %s", p.name, errors.Join(context.Cause(ctx), err), p.Tail())
		case <-tick.C:
		}
	}
}

// Tail is the last 2 KiB of the log.
func (p *Process) Tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 2048 {
		_, _ = f.Seek(-2048, io.SeekEnd)
	}
	var b bytes.Buffer
	_, _ = b.ReadFrom(f)
	return strings.TrimSpace(b.String())
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listened on a moment ago, and that the kernel gives to nobody who leaves the
// choice to it. Somebody may take it before it is used: who starts a server on it tries again with another one.
func FreePort() (int, error) {
	const lowest = 10_000
	end := 32_768 // Linux's own, and below that of others
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(text), &end)
	}
	for range 100 {
		port := lowest + rand.IntN(max(end-lowest, 1000))
		if l, err := net.Listen("tcp", loopback(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find a free port: none in 100 tries")
}

// State waits for the end and says by which code or signal the process ended.
func (p *Process) State() *os.ProcessState {
	<-p.done
	return p.cmd.ProcessState
}
