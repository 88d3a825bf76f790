package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"text/tabwriter"

	"s3pulldeploy/internal/config"
)

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
		{"healthy", strconv.FormatBool(s.Healthy)},
		{"version", s.Version},
	}
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\n", r[0], r[1])
	}
	return t.Flush()
}
