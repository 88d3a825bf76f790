package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"s3pulldeploy/internal/instance"
)

// Systemd is the service manager's side of an agent: sd_notify, the watchdog, and whether the machine is going. Without
// systemd (NOTIFY_SOCKET unset) it does nothing.
type Systemd struct {
	// IMDS is the metadata service's endpoint, empty for the real one; it is asked only where EC2 is true.
	IMDS string
	EC2  bool
}

// Ready tells systemd that the unit is up.
func (Systemd) Ready() { send(daemon.SdNotifyReady) }

// Status sets the unit's status line.
func (Systemd) Status(text string) { send("STATUS=" + text) }

// Watchdog pings.
func (Systemd) Watchdog() { send(daemon.SdNotifyWatchdog) }

// WatchdogEvery is the unit's WatchdogSec, 0 when there is none.
func (Systemd) WatchdogEvery() time.Duration {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return every
}

// send is best effort: a service manager that cannot be reached must not stop a rollout.
func send(state string) { _, _ = daemon.SdNotify(false, state) }

// Going says that systemd is stopping the system, or that EC2 is about to take the machine. Bounded.
func (s Systemd) Going(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if stopping(ctx) {
		return true
	}
	if !s.EC2 {
		return false
	}
	l, err := instance.Look(ctx, s.IMDS)
	return err == nil && l.Going
}

func stopping(ctx context.Context) bool {
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return false
	}
	defer c.Close()
	state, err := c.SystemStateContext(ctx)
	if err != nil || state == nil {
		return false
	}
	text, ok := state.Value.Value().(string)
	return ok && text == "stopping"
}

// reloadTime bounds the reload of all units: php-fpm waits for running requests as long as process_control_timeout.
const reloadTime = time.Minute

// restartTime bounds the restart of all units: systemd kills what does not stop after 90 seconds.
const restartTime = 3 * time.Minute

// Why units are left as they were. None of it says anything about a release, and going back would not mend it.
var (
	// ErrNotAllowed: the agent's user may not do to a unit what was asked for, since polkit has no rule that lets it.
	ErrNotAllowed = errors.New("systemd does not allow it to the agent's user: share/polkit/50-s3-pull-deploy.rules")
	// ErrNoSystemd: nobody answers.
	ErrNoSystemd = errors.New("systemd is out of reach")
	// ErrNoUnit: none of the units that were named runs.
	ErrNoUnit = errors.New("no unit of that name is running: correct `restart`")
)

// untouched says whether an error is one of these.
func untouched(err error) bool {
	return errors.Is(err, ErrNotAllowed) || errors.Is(err, ErrNoSystemd) || errors.Is(err, ErrNoUnit)
}

// denied says whether systemd's answer is that one may not.
func denied(err error) bool {
	var e godbus.Error
	return errors.As(err, &e) &&
		(e.Name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" || e.Name == "org.freedesktop.DBus.Error.AccessDenied")
}

// Reload is as [Service] says, over D-Bus. The agent's user must be allowed to (root is).
func (s Systemd) Reload(ctx context.Context, units []string) (begun int, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	found, begun, err := s.each(ctx, units, func(c *dbus.Conn, unit string, done chan<- string) (int, error) {
		return c.ReloadOrTryRestartUnitContext(ctx, unit, "replace", done)
	})
	if err == nil && found == 0 {
		err = fmt.Errorf("%q: %w", units, ErrNoUnit)
	}
	return begun, err
}

// Restart is as [Service] says, over D-Bus.
func (s Systemd) Restart(ctx context.Context, units []string) error {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	_, _, err := s.each(ctx, units, func(c *dbus.Conn, unit string, done chan<- string) (int, error) {
		return c.TryRestartUnitContext(ctx, unit, "replace", done)
	})
	return err
}

// toManager connects to systemd: root to its own socket, which needs no bus; others, whom that refuses, over the bus, where polkit
// says what they may.
func toManager(ctx context.Context) (*dbus.Conn, error) {
	if os.Geteuid() == 0 {
		return dbus.NewSystemdConnectionContext(ctx)
	}
	return dbus.NewSystemConnectionContext(ctx)
}

// each begins a job for every running unit of some patterns, and waits for all of them. It returns how many there are, and
// how many jobs were begun; that some may not be touched is the error only where nothing else failed.
func (Systemd) each(ctx context.Context, units []string, begin func(*dbus.Conn, string, chan<- string) (int, error)) (running, begun int, err error) {
	c, err := toManager(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	defer c.Close()
	found, err := c.ListUnitsByPatternsContext(ctx, []string{"active"}, units)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: list units %q: %w", ErrNoSystemd, units, err)
	}
	jobs := make([]chan string, len(found))
	var errs, barred []error
	for i, u := range found { // all at once: a worker may take a minute to end its job
		jobs[i] = make(chan string, 1)
		_, err := begin(c, u.Name, jobs[i])
		switch {
		case denied(err):
			barred, jobs[i] = append(barred, fmt.Errorf("%s: %w: %w", u.Name, ErrNotAllowed, err)), nil
		case err != nil:
			errs, jobs[i] = append(errs, fmt.Errorf("%s: %w", u.Name, err)), nil
		default:
			begun++
		}
	}
	for i, u := range found {
		if jobs[i] == nil {
			continue
		}
		select {
		case result := <-jobs[i]:
			if result != "done" && result != "skipped" {
				errs = append(errs, fmt.Errorf("%s: %s", u.Name, result))
			}
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("%s: %w", u.Name, ctx.Err()))
		}
	}
	return len(found), begun, cmp.Or(errors.Join(errs...), errors.Join(barred...))
}
