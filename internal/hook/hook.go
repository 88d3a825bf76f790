// Package hook runs the operator's commands.
//
// A command is a line for /bin/sh in a process group of its own. It reads from /dev/null. Its
// environment is small and clean: PATH, HOME, USER, LOGNAME and LANG of the user that it runs as, and
// what [Spec.Env] adds. Nothing of the agent's own environment is passed on, so that credentials and
// systemd's notification socket stay with the agent.
//
// The group is ended whole, with SIGTERM and after a grace of five seconds with SIGKILL, when the
// context ends, when [Spec.Timeout] is over, when nothing was printed for [Spec.Idle], and also when
// the shell has exited: children left in the background do not outlive their hook. A process that
// leaves the group (setsid, as daemons do) is not ended, and nobody waits for it; it must not count
// on its output, whose reader goes away.
//
// Standard output and error are one stream, in order. All of it goes to the logger line by line (a
// line over 4 KB in pieces), and the last 4 KB are kept, so memory is bounded whatever a command
// prints.
//
// Whether a failure means anything is the caller's to decide.
package hook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// How a command did not end by itself, and why it did not start.
var (
	ErrTimeout   = errors.New("timed out")
	ErrIdle      = errors.New("printed nothing for too long")
	ErrPrivilege = errors.New("the agent may not change to this user")
	errStuck     = errors.New("does not end, not even by SIGKILL")
)

// Spec is a command to run.
type Spec struct {
	Name    string        // what messages and the log call it, e.g. "before_flip"
	Command string        // for /bin/sh -c; the shell's ${…} is the shell's
	Dir     string        // working directory; empty: /
	User    string        // name or number of the user to run as; empty: the agent's own
	Env     []string      // KEY=value, in addition to the clean ones, which they override
	Timeout time.Duration // in all; 0: none
	Idle    time.Duration // without any output; 0: none
	Logger  *slog.Logger  // gets the output; nil: nobody does

	grace time.Duration // 0: the package's; tests have less time
}

// Result is what is known of a command that was started, whether it succeeded or not.
type Result struct {
	Tail     string // the last 4 KB of the output, valid UTF-8
	Duration time.Duration
	ExitCode int // 128 plus the number for an end by a signal, as shells count; -1: it did not end
}

// ExitError says that a command ended by itself, and not with 0.
type ExitError struct {
	Name string
	Code int    // as in Result
	Tail string // as in Result
}

// Error is at most 200 bytes and ends with the last line of output.
func (e *ExitError) Error() string {
	return brief(fmt.Sprintf("hook %s: exit code %d", e.Name, e.Code), e.Tail)
}

// failure is any other way to fail, with the last line of output.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

// Run runs the command and waits for its end and its group's.
//
// Errors are an *ExitError, [ErrTimeout], [ErrIdle], the context's cause, [ErrPrivilege] (Spec.User
// needs CAP_SETUID, CAP_SETGID and CAP_KILL), or what kept the command from starting. Messages are at
// most 200 bytes.
func Run(ctx context.Context, s Spec) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, fail(s.Name, "", context.Cause(ctx))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if s.Timeout > 0 {
		after := fmt.Errorf("%w after %v", ErrTimeout, s.Timeout)
		defer time.AfterFunc(s.Timeout, func() { cancel(after) }).Stop()
	}
	out := newOutput(s.Logger, s.Name)
	if s.Idle > 0 {
		quiet := fmt.Errorf("%w (%v)", ErrIdle, s.Idle)
		timer := time.AfterFunc(s.Idle, func() { cancel(quiet) })
		defer timer.Stop()
		out.heard = func() { timer.Reset(s.Idle) }
	}

	began := time.Now()
	g, err := start(s, out)
	if err != nil {
		return Result{}, fail(s.Name, "", err)
	}
	cause := g.await(ctx)
	stuck := g.end()
	r := Result{Tail: out.finish(), Duration: time.Since(began), ExitCode: -1}
	if stuck != nil {
		return r, fail(s.Name, r.Tail, errors.Join(cause, stuck))
	}
	r.ExitCode = g.exitCode()
	switch {
	case cause != nil:
		return r, fail(s.Name, r.Tail, cause)
	case r.ExitCode != 0:
		return r, &ExitError{Name: s.Name, Code: r.ExitCode, Tail: r.Tail}
	}
	return r, nil
}

// start starts the shell; the group must be ended.
func start(s Spec, out *output) (*group, error) {
	who, err := lookup(s.User)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	defer write.Close()

	cmd := exec.Command("/bin/sh", "-c", s.Command)
	cmd.Dir = cmp.Or(s.Dir, "/")
	cmd.Env = append(who.environment(), s.Env...)
	// A file, not a writer: so Wait waits for the shell and not for everybody who holds the pipe.
	cmd.Stdout, cmd.Stderr = write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: who.credential}
	if err := cmd.Start(); err != nil {
		read.Close()
		if who.credential != nil && errors.Is(err, syscall.EPERM) {
			return nil, fmt.Errorf("run as %s: %w: it needs root or CAP_SETUID and CAP_SETGID", who.name, ErrPrivilege)
		}
		if _, missing := os.Stat(cmd.Dir); missing != nil { // which the kernel blames on /bin/sh
			return nil, fmt.Errorf("enter folder: %w", missing)
		}
		return nil, err
	}
	out.pump(read)
	return watch(cmd, cmp.Or(s.grace, grace)), nil
}

// fail is err under the hook's name, with the last line of output, in 200 bytes.
func fail(name, tail string, err error) error {
	head := "hook " + name + ": " + strings.ReplaceAll(err.Error(), "\n", ": ")
	return &failure{text: brief(head, tail), err: err}
}
