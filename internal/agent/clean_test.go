package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/table"
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
