package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

func TestLeavingKeepsTheRowUnlessTheMachineGoes(t *testing.T) {
	bubble(t, func(r *rig) {
		stays, goes := r.box("i-1"), r.box("i-2")
		goes.service.going = true
		for _, b := range []*box{stays, goes} {
			b.boot()
			b.says("waiting for the first push", 5*time.Second, true)
			b.stop()
		}
		if m, ok := r.row("i-1"); !ok || m.Phase != fleet.Leaving {
			t.Errorf("row of the stopped agent: %v, %+v", ok, m)
		}
		if m, ok := r.row("i-2"); ok {
			t.Errorf("the row of a machine that is gone is still there: %+v", m)
		}
	})
}

func TestStopInTheMiddleLeavesNoJobAndNoTemporaryName(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		h := holding(string(r1) + "/a.php")
		r.bucket.through(h.gate)
		r.push(r1)
		b.says("stage "+string(r1), 10*time.Second, true)
		began := time.Now()
		b.stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		for _, n := range b.names() {
			if n != ".incoming-"+string(r1) {
				t.Errorf("left behind: %s", n)
			}
		}
		for _, l := range b.service.lines {
			if strings.Contains(l, "cancel") {
				t.Errorf("stopping was shown as a problem: %q", l)
			}
		}
	})
}

func TestStopDuringAPointerRead(t *testing.T) {
	bubble(t, func(r *rig) {
		h := holding("pointer")
		r.bucket.through(h.gate)
		b := r.boot("i-1")[0]
		time.Sleep(10 * time.Second)
		began := time.Now()
		b.stop() // reports an error when the schedule did not end in time
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
	})
}

func TestReloadOfAnEndedAgentBlocksNobody(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		b.stop()
		for range 3 * cap(b.agent.events) {
			b.agent.Reload(nil) // nobody takes it: blocking would be a deadlock of the bubble
		}
	})
}

func TestReloadWaitsUntilNothingIsUnderWay(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		h := holding(string(r1) + "/a.php")
		r.bucket.through(h.gate)
		r.push(r1)
		b.says("stage "+string(r1), 10*time.Second, true)
		b.agent.Reload(nil)
		time.Sleep(time.Minute)
		if len(b.done) > 0 {
			t.Fatalf("ended in the middle of an epoch: %v", b.wait())
		}
		close(h.open)
		if err := b.wait(); !errors.Is(err, ErrReload) {
			t.Fatalf("ended with %v, want ErrReload", err)
		}
		if r.head().State.Open() {
			t.Error("ended while the epoch was open")
		}
		b.boot()
		r.live(r1, 20*time.Second, b)
	})
}

func TestBadSettingsAreShownAndTheOldOnesStay(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		b.says("waiting", 5*time.Second, true)
		b.agent.Reload(errors.New("agent.yml:3: root:\nmust be absolute"))
		b.says("settings: agent.yml:3: root:; must be absolute", 5*time.Second, true)
		b.service.mu.Lock()
		if last := b.service.lines[len(b.service.lines)-1]; !strings.Contains(last, "settings:") || strings.Contains(last, "\n") {
			t.Errorf("systemd was told %q", last)
		}
		b.service.mu.Unlock()
		time.Sleep(time.Minute)
		if len(b.done) > 0 {
			t.Fatal("bad settings ended the agent")
		}
		b.agent.Reload(nil)
		if err := b.wait(); !errors.Is(err, ErrReload) {
			t.Errorf("good ones ended it with %v", err)
		}
	})
}

func TestRestartWithoutTheTableServesWhatItHas(t *testing.T) {
	bubble(t, func(r *rig) {
		var away atomic.Bool
		b := r.box("i-1")
		b.table = &table.Faulty{Table: r.table, Hook: func(context.Context, table.Request) table.Fault {
			if away.Load() {
				return table.LoseRequest
			}
			return table.None
		}}
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.stop()
		away.Store(true)
		b.service.ready = nil
		b.boot()
		b.says("table:", 5*time.Second, true)
		if s := b.agent.Status(); !s.Healthy || s.Ready {
			t.Errorf("at once: healthy %v, ready %v; want healthy only", s.Healthy, s.Ready)
		}
		b.says("isolated: serving "+string(r1), 15*time.Second, true)
		if got := b.service.readies(); len(got) != 1 || got[0] != r1 {
			t.Errorf("ready with %q", got)
		}
		away.Store(false)
		b.says("isolated", 10*time.Second, false)
		b.says("serving "+string(r1), 5*time.Second, true)
	})
}

func TestEmptyMachineWithoutTheTableIsNeitherReadyNorHealthy(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1")
		b.table = &table.Faulty{Table: r.table, Hook: func(context.Context, table.Request) table.Fault { return table.Throttle }}
		b.boot()
		time.Sleep(time.Minute)
		if s := b.agent.Status(); s.Healthy || s.Ready || len(b.service.readies()) > 0 {
			t.Errorf("healthy %v, ready %v: it has nothing to serve", s.Healthy, s.Ready)
		}
	})
}

func TestDamagedStateIsAClearError(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.stop()
		file := filepath.Join(b.cfg.StateDir, "state.json")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text[:len(text)-5], 0o600); err != nil {
			t.Fatal(err)
		}
		err = b.prepare()
		defer b.disk.Close()
		if want := `load state "` + file + `": state file is damaged`; !errors.Is(err, disk.ErrState) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

func TestSecondAgentOnTheSameDisk(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		d, err := openDisk(b.cfg, logger())
		if !errors.Is(err, disk.ErrLocked) {
			t.Errorf("opened %v, %v", d, err)
		}
	})
}

func TestSameIDTwiceStopsTheFirst(t *testing.T) {
	bubble(t, func(r *rig) {
		first := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, first)
		second := r.boot("i-1")[0]
		first.says("duplicate id", 2*time.Minute, true)
		if !first.agent.Status().Healthy {
			t.Error("a duplicate that serves the committed release is not healthy: the load balancer would lose it")
		}
		r.until("the other serves", 30*time.Second, func() bool { return second.active() == r1 && second.agent.Status().Ready })
		r.push(r2)
		r.live(r2, 20*time.Second, second)
		if first.active() != r1 {
			t.Errorf("the duplicate went on to %s", first.active())
		}
	})
}

func TestLinkMovedByHandIsPutBackAtStart(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		for _, id := range []release.ID{r1, r2} {
			r.push(id)
			r.live(id, 15*time.Second, b)
		}
		b.stop()
		link := filepath.Join(b.cfg.Root, "active")
		if err := errors.Join(os.Remove(link), os.Symlink(string(r1), link)); err != nil {
			t.Fatal(err)
		}
		b.boot()
		r.live(r2, 20*time.Second, b)
	})
}

func TestLoopSleepsWhateverIsAway(t *testing.T) {
	away := func(context.Context, table.Request) table.Fault { return table.LoseRequest }
	for _, c := range []struct {
		name string
		set  func(r *rig, b *box)
	}{
		{"nothing", func(*rig, *box) {}},
		{"the table", func(_ *rig, b *box) { b.table.(*table.Faulty).Hook = away }},
		{"replies of the table", func(_ *rig, b *box) {
			b.table.(*table.Faulty).Hook = func(_ context.Context, q table.Request) table.Fault {
				if q.Reads() {
					return table.None
				}
				return table.LoseReply
			}
		}},
		{"S3", func(r *rig, _ *box) {
			r.bucket.through(func(context.Context, string) error { return store.ErrUnavailable })
		}},
		{"the contents that the pointer names", func(r *rig, _ *box) { r.point(r2, 5) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				b := r.box("i-1", "hooks: {after_flip: 'false'}") // tried again and again
				b.table = &table.Faulty{Table: r.table}
				b.boot()
				r.push(r1)
				b.says("hook after_flip", 20*time.Second, true)
				b.stop()
				c.set(r, b)
				b.boot()
				time.Sleep(5 * time.Second)
				turns := func() int {
					b.service.mu.Lock()
					defer b.service.mu.Unlock()
					return b.service.turns
				}
				before := turns()
				time.Sleep(3 * time.Minute)
				if n := turns() - before; n > 3*60*10 {
					t.Errorf("the loop turned %d times in 3 minutes", n)
				}
			})
		})
	}
}

func TestStopWhileTheTableKeepsARequestWaiting(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1")
		b.table = silent{r.table}
		b.boot()
		time.Sleep(time.Minute)
		began := time.Now()
		b.stop()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stopping took %v", took)
		}
		if m, ok := r.row("i-1"); !ok || m.Phase != fleet.Leaving {
			t.Errorf("the fleet was not told: %v, %+v", ok, m)
		}
	})
}

// silent is a table that takes writes and never answers a read.
type silent struct{ fleet.Table }

func (s silent) Get(ctx context.Context, _ fleet.Key, _ bool) (fleet.Item, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
