package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

func TestFirstDeployOfOne(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		b.says("waiting for the first push", 5*time.Second, true)
		if got := b.service.readies(); len(got) != 1 || got[0] != "" {
			t.Errorf("ready before the first push: %q, want once, with nothing active", got)
		}
		if !b.agent.Status().Healthy {
			t.Error("an instance that waits for the first push is not healthy")
		}
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		for _, p := range paths {
			got, err := os.ReadFile(filepath.Join(b.cfg.Root, "active", p))
			if err != nil || string(got) != string(r1)+" "+p {
				t.Errorf("%s: %q, %v", p, got, err)
			}
		}
		b.says("serving "+string(r1), time.Second, true)
	})
}

func TestThreeFlipTogetherAndFetchOnce(t *testing.T) {
	bubble(t, func(r *rig) {
		boxes := r.boot("i-1", "i-2", "i-3")
		r.push(r1)
		r.live(r1, 60*time.Second, boxes...)
		r.push(r2)
		if took := r.live(r2, 10*time.Second, boxes...); took > 4*time.Second {
			t.Errorf("push to live took %v, want under 4 s", took)
		}
		var first, last int64
		for i, b := range boxes {
			m, _ := r.row(b.id)
			if i == 0 || m.Active.At < first {
				first = m.Active.At
			}
			last = max(last, m.Active.At)
		}
		if last-first > 50 {
			t.Errorf("flips spread over %d ms, want at most 50", last-first)
		}
		for _, p := range paths {
			if n := r.bucket.times(r2, p); n != len(boxes) {
				t.Errorf("%s fetched %d times by %d instances", p, n, len(boxes))
			}
		}
	})
}

func TestNobodyIsUnhealthyDuringAFlip(t *testing.T) {
	bubble(t, func(r *rig) {
		boxes := r.boot("i-1", "i-2")
		r.push(r1)
		r.live(r1, 60*time.Second, boxes...)
		r.push(r2)
		r.until("live", 15*time.Second, func() bool {
			for _, b := range boxes {
				if s := b.agent.Status(); !s.Healthy {
					t.Fatalf("%s is unhealthy: %s", b.id, s.Line)
				}
			}
			return r.head().State == fleet.Done && boxes[0].active() == r2 && boxes[1].active() == r2
		})
	})
}

func TestReadyComesWhenTheCommittedReleaseIsLive(t *testing.T) {
	bubble(t, func(r *rig) {
		old := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, old)
		h := holding(string(r1) + "/b.php")
		r.bucket.through(h.gate)
		b := r.boot("i-2")[0]
		b.says("stage "+string(r1), 10*time.Second, true)
		time.Sleep(time.Minute)
		if got := b.service.readies(); len(got) != 0 || b.agent.Status().Healthy {
			t.Errorf("while it is brought up: ready %q, healthy %v", got, b.agent.Status().Healthy)
		}
		close(h.open)
		r.live(r1, 10*time.Second, old, b)
		r.until("ready", 5*time.Second, func() bool { return len(b.service.readies()) > 0 })
		if got := b.service.readies(); !slices.Equal(got, []release.ID{r1}) {
			t.Errorf("active when ready was said: %q", got)
		}
	})
}

func TestUnhealthyJoinerIsNeverReady(t *testing.T) {
	bubble(t, func(r *rig) {
		old := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, old)
		flag := filepath.Join(t.TempDir(), "well")
		b := r.box("i-2", "hooks: {after_flip: test -e "+flag+"}")
		b.boot()
		b.says("hook after_flip", 10*time.Second, true)
		time.Sleep(time.Minute)
		if s := b.agent.Status(); len(b.service.readies()) > 0 || s.Healthy || b.active() != r1 {
			t.Errorf("ready %q, healthy %v, active %q", b.service.readies(), s.Healthy, b.active())
		}
		if m, _ := r.row("i-2"); m.Phase != fleet.Join || m.Active.Release != "" || m.Failed == 0 {
			t.Errorf("its row: %+v", m)
		}
		if err := os.WriteFile(flag, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		r.until("healed", 20*time.Second, func() bool { return len(b.service.readies()) == 1 && b.agent.Status().Healthy })
	})
}

func TestFailedCheckAfterTheFlipShowsAndIsTriedAgain(t *testing.T) {
	bubble(t, func(r *rig) {
		flag := filepath.Join(t.TempDir(), "well")
		b := r.box("i-1", "health_check: {rollback: false}", "hooks: {after_flip: '[ $DEPLOY_RELEASE = "+string(r1)+" ] || test -e "+flag+"'}")
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		r.push(r2)
		r.until("failure reported", 10*time.Second, func() bool { m, _ := r.row("i-1"); return m.Failed == 2 })
		m, _ := r.row("i-1")
		if m.Active.Release == r2 || !strings.Contains(m.Error, "after_flip") || b.active() != r2 {
			t.Errorf("reported %+v, active %s", m, b.active())
		}
		if s := b.agent.Status(); s.Healthy || !strings.Contains(s.Line, "service: hook after_flip") {
			t.Errorf("status: healthy %v, %q", s.Healthy, s.Line)
		}
		if err := os.WriteFile(flag, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		r.until("reported", 20*time.Second, func() bool { m, _ := r.row("i-1"); return m.Active.Release == r2 && m.Failed == 0 })
		r.until("healthy", time.Second, func() bool { return b.agent.Status().Healthy })
	})
}

func TestSupersededStageIsGivenUp(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		h := holding(string(r1) + "/lib/c.php")
		r.bucket.through(h.gate)
		r.push(r1)
		b.says("stage "+string(r1), 10*time.Second, true)
		r.push(r2)
		r.live(r2, 20*time.Second, b)
		if b.active() != r2 || slices.Contains(b.names(), string(r1)) {
			t.Errorf("active %s, root %q", b.active(), b.names())
		}
	})
}

func TestStageGoesOnWhereItWasGivenUp(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		h := holding(string(r1) + "/lib/c.php")
		r.bucket.through(h.gate)
		r.push(r1)
		b.says("stage "+string(r1), 10*time.Second, true)
		r.until("the rest", 5*time.Second, func() bool { return r.bucket.times(r1, "lib/d.php") == 1 })
		time.Sleep(time.Second)
		r.point(r1, len(paths)) // pushed again: the epoch is given up
		r.until("next epoch", 20*time.Second, func() bool { return r.head().Epoch == 2 })
		b.says("stage "+string(r1), 10*time.Second, true)
		b.stop() // and so is the process
		r.bucket.through(nil)
		b.boot()
		r.live(r1, 40*time.Second, b)
		for _, p := range paths {
			if n := r.bucket.times(r1, p); n != 1 {
				t.Errorf("%s fetched %d times, want once over three tries", p, n)
			}
		}
	})
}

func TestProgressIsInTheRowWhileStaging(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		h := holding(string(r1) + "/lib/c.php")
		r.bucket.through(h.gate)
		r.push(r1)
		r.until("progress", 20*time.Second, func() bool { m, _ := r.row("i-1"); return m.Progress == "3 of 4 files" })
		close(h.open)
		r.live(r1, 10*time.Second, b)
		r.until("no progress", 2*time.Minute, func() bool { m, _ := r.row("i-1"); return m.Progress == "" })
	})
}

func TestWatchdogIsPingedWhileAStageIsSlow(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1")
		b.service.every = 3 * time.Second
		b.boot()
		h := holding(string(r1) + "/a.php")
		r.bucket.through(h.gate)
		r.push(r1)
		b.says("stage "+string(r1), 10*time.Second, true)
		time.Sleep(2 * time.Minute)
		close(h.open)
		r.live(r1, 10*time.Second, b)
		b.service.mu.Lock()
		defer b.service.mu.Unlock()
		last := r.began
		for _, at := range b.service.pings {
			if gap := at.Sub(last); gap > 1500*time.Millisecond {
				t.Errorf("no ping for %v, want half of WatchdogSec at most", gap)
			}
			last = at
		}
		if n := len(b.service.pings); n < 80 {
			t.Errorf("%d pings in over 2 minutes", n)
		}
	})
}

func TestAfterFlipIsToldWhatWasLiveBefore(t *testing.T) {
	bubble(t, func(r *rig) {
		file := filepath.Join(t.TempDir(), "told")
		b := r.box("i-1", "hooks: {after_flip: 'echo $DEPLOY_RELEASE after=$DEPLOY_PREVIOUS $DEPLOY_KIND $DEPLOY_INSTANCE in $(basename $(pwd)) >> "+file+"'}")
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		r.push(r2)
		r.live(r2, 15*time.Second, b)
		r.point(r1, len(paths), `kind "rollback"`)
		r.live(r1, 15*time.Second, b)
		got, err := os.ReadFile(file)
		want := string(r1) + " after= deploy i-1 in " + string(r1) + "\n" +
			string(r2) + " after=" + string(r1) + " deploy i-1 in " + string(r2) + "\n" +
			string(r1) + " after=" + string(r2) + " rollback i-1 in " + string(r1) + "\n"
		if err != nil || string(got) != want {
			t.Errorf("the hook was told\n%swant\n%s(%v)", got, want, err)
		}
	})
}

func TestCleanUpRemovesOnlyWhatNobodyNeeds(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", "keep_releases: 1", "keep_for: 0s")
		b.boot()
		for _, id := range []release.ID{r1, r2, r3, r4} {
			r.push(id)
			r.live(id, 20*time.Second, b)
		}
		// r2 was what a rollback would have gone to until r4 was good: it goes with the next clean-up.
		r.until("clean", 2*time.Hour, func() bool { return !slices.Contains(b.names(), string(r2)) })
		want := []string{string(r3), string(r4), "active", "previous"}
		if got := b.names(); !slices.Equal(got, want) {
			t.Errorf("root has %q, want %q", got, want)
		}
		synctest.Wait() // the worker has ended its own clean-up
		b.agent.machine.clean(keepList{r3})
		if err := os.Remove(filepath.Join(b.cfg.Root, "previous")); err != nil {
			t.Fatal(err)
		}
		b.agent.machine.cfg.KeepReleases = 0
		b.agent.machine.clean(keepList{r3}) // as when it is voted for
		if got := b.names(); !slices.Contains(got, string(r3)) {
			t.Errorf("root has %q: what the node keeps was removed", got)
		}
	})
}
