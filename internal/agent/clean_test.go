package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
)

// A crash in the middle of a clean-up leaves what was taken out of the way. The next start removes it; but not while the head,
// which names releases that are to stay, is not known.
func TestWhatACrashLeftGoesOnceTheHeadIsKnown(t *testing.T) {
	bubble(t, func(r *rig) {
		var away atomic.Bool
		a := r.box("i-1")
		a.table = &table.Faulty{Table: r.table, Hook: func(context.Context, table.Request) table.Fault {
			if away.Load() {
				return table.LoseRequest
			}
			return table.None
		}}
		a.boot()
		r.push(r1)
		r.live(r1, time.Minute, a)
		a.stop()
		left := filepath.Join(a.cfg.Root, ".trash-crash")
		if err := os.MkdirAll(filepath.Join(left, "lib"), 0o755); err != nil {
			t.Fatal(err)
		}
		away.Store(true)
		a.boot()
		a.says("isolated", time.Minute, true)
		time.Sleep(time.Hour + time.Minute) // past the hourly clean-up
		if names := a.names(); !slices.Contains(names, ".trash-crash") {
			t.Errorf("without the head, there are %v", names)
		}
		away.Store(false)
		r.until("the clean-up", 10*time.Second, func() bool { return !slices.Contains(a.names(), ".trash-crash") })
		if names := a.names(); !slices.Contains(names, string(r1)) {
			t.Errorf("there are %v, without %s, which is live", names, r1)
		}
	})
}

func TestAFailingCleanUpIsAWarningAndNothingElse(t *testing.T) {
	testenv.Root(t, "mounts")
	bubble(t, func(r *rig) {
		var log bytes.Buffer // written under the handler's lock, and read when the agent has ended
		b := r.box("i-1", "keep_releases: 1", "keep_for: 0s")
		b.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		b.boot()
		live := func(id release.ID) { r.push(id); r.live(id, 20*time.Second, b) }
		live(r1)
		live(r2)
		forgotten := filepath.Join(b.cfg.Root, string(r1), "forgotten")
		if err := errors.Join(os.Mkdir(forgotten, 0o755), unix.Mount(t.TempDir(), forgotten, "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		unmount := sync.OnceValue(func() error { return unix.Unmount(forgotten, unix.MNT_DETACH) })
		defer unmount()
		live(r3)
		live(r4)
		time.Sleep(time.Minute) // r1 is not kept any more, and it was tried some times
		if s := b.agent.Status(); !s.Healthy || len(s.Problems) > 0 || s.Line != "serving "+string(r4) || !slices.Contains(b.names(), string(r1)) {
			t.Errorf("it says %q, healthy %v, and has %q", s.Line, s.Healthy, b.names())
		}
		if err := unmount(); err != nil {
			t.Fatal(err)
		}
		r.until("clean", 2*time.Hour, func() bool { return !slices.Contains(b.names(), string(r1)) })
		b.stop()
		said := 0
		for line := range strings.Lines(log.String()) {
			switch {
			case strings.Contains(line, `level=WARN msg="clean up"`) && strings.Contains(line, "mount"):
				said++
			case !strings.Contains(line, "not everybody was told"): // by the rig's notifier
				t.Errorf("the log has %s", line)
			}
		}
		if said == 0 {
			t.Error("it was not said why r1 stays")
		}
	})
}
