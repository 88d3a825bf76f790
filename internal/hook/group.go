package hook

import (
	"context"
	"errors"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is between SIGTERM and SIGKILL: long enough for a PHP command line to clean up, short next to
// every timeout that a hook may have.
const grace = 5 * time.Second

// group is the shell and whatever it started in its process group.
type group struct {
	cmd    *exec.Cmd
	grace  time.Duration
	exited chan struct{} // closed when the shell has exited, before it is reaped
}

// watch waits for the shell's exit without reaping it. As long as it is a zombie its number, which is
// the group's too, cannot become somebody else's: so the group can be signalled safely.
func watch(cmd *exec.Cmd, grace time.Duration) *group {
	g := &group{cmd: cmd, grace: grace, exited: make(chan struct{})}
	go func() {
		defer close(g.exited)
		for {
			err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return g
}

// await waits for the shell's exit (nil) or the context's end (its cause).
func (g *group) await(ctx context.Context) error {
	select {
	case <-g.exited:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-g.exited: // both at once: what the shell says is worth more
		return nil
	default:
		return context.Cause(ctx)
	}
}

// end ends the group and reaps the shell. A shell that sleeps in the kernel (a network filesystem that
// hangs) survives SIGKILL: after another grace that is errStuck, and the shell is left to a goroutine.
func (g *group) end() error {
	killAt := time.After(g.grace)
	g.signal(syscall.SIGTERM)
	select {
	case <-g.exited:
	case <-killAt:
		g.signal(syscall.SIGKILL)
		killed, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		if g.await(killed) != nil {
			go func() { <-g.exited; _ = g.cmd.Wait() }()
			return errStuck
		}
		_ = g.cmd.Wait() // its exit code is all that this says
		return nil
	}
	_ = g.cmd.Wait()
	g.endOthers(killAt)
	return nil
}

// endOthers waits for the shell's children, who got their SIGTERM, and kills what is left at killAt.
// The group's number stays its own as long as it has a member.
func (g *group) endOthers(killAt <-chan time.Time) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for g.signal(0) == nil {
		select {
		case <-tick.C:
		case <-killAt:
			g.signal(syscall.SIGKILL)
			return
		}
	}
}

// signal sends to every member; 0 only asks whether there is one that we may signal.
func (g *group) signal(sig syscall.Signal) error {
	return syscall.Kill(-g.cmd.Process.Pid, sig)
}

// exitCode is the reaped shell's.
func (g *group) exitCode() int {
	state := g.cmd.ProcessState
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
