package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"text/tabwriter"

	"s3pulldeploy/internal/config"
)

// succession is the lives of one process: an agent for each version of the settings, one at a time.
type succession struct {
	log     *slog.Logger
	current atomic.Pointer[Agent]
	next    atomic.Pointer[config.Config] // read, and not in force yet
}

// changed takes settings that were read again, or what is wrong with them.
func (s *succession) changed(c *config.Config, err error) {
	if err == nil {
		s.next.Store(c)
	}
	if a := s.current.Load(); a != nil {
		a.Reload(err)
	}
}

// born makes an agent the current one. It shows why newer settings were refused, when they were, and hears of settings that
// changed while there was none to hear of it.
func (s *succession) born(a *Agent, refused error) {
	s.current.Store(a)
	if refused != nil {
		a.Reload(refused)
	}
	if s.next.Load() != nil {
		a.Reload(nil)
	}
}

// run lives one life after the other. Settings that do not work, though they are valid, give way to those before, and the
// life with these is told why; only where there are none before, the error ends it.
func (s *succession) run(ctx context.Context, c *config.Config, live func(c *config.Config, refused error) error) error {
	var before *config.Config // what worked before the last reload
	var refused error
	for {
		err := live(c, refused)
		refused = nil
		if err == nil || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, ErrAway) {
			continue // the next life begins when the machine is to serve again
		}
		n, ended := s.next.Swap(nil), errors.Is(err, ErrReload)
		switch {
		case ended && n != nil:
			s.log.Info("settings changed", "path", n.Path)
			before, c = c, n
		case ended: // told twice of what is in force already
		case n != nil:
			s.log.Error("the settings do not work, trying newer ones", "error", err)
			c = n
		case before != nil:
			s.log.Error("the new settings do not work, going on with the old ones", "error", err)
			before, c, refused = nil, before, fmt.Errorf("the new settings do not work: %w", err)
		default:
			return err
		}
	}
}

// watch reads the settings again when their file changes or a signal asks for it, and hands over what it read or what is
// wrong with it. The returned stop waits for its goroutine.
func watch(ctx context.Context, path string, signals <-chan os.Signal, log *slog.Logger, changed func(*config.Config, error)) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	again := func() { changed(config.Load(path, config.ForAgent)) }
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		if err := config.Watch(ctx, path, again); err != nil && ctx.Err() == nil {
			log.Warn("settings are not watched, SIGHUP reloads them", "error", err)
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
				again()
			}
		}
	}()
	return func() error {
		cancel()
		<-done
		<-done
		return nil
	}
}

// printStatus writes an agent's status for people.
func printStatus(w io.Writer, s Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := [][2]string{
		{"site", s.Site},
		{"instance", s.Instance + " (group " + s.Group + ")"},
		{"status", s.Line},
		{"phase", string(s.Phase)},
		{"serving", string(s.Flipped.Release)},
		{"epoch", strconv.FormatInt(s.Head.Epoch, 10) + " " + string(s.Head.State) + " " + string(s.Head.Release)},
		{"scrub", s.Scrub.String()},
		{"healthy", strconv.FormatBool(s.Healthy)},
		{"version", s.Version},
	}
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\n", r[0], r[1])
	}
	return t.Flush()
}
