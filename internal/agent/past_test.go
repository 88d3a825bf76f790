package agent

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

func TestRollbackSkipsBeforeFlipOnlyWhereItPassed(t *testing.T) {
	bubble(t, func(r *rig) {
		dir := t.TempDir() // before_flip says in "told" that it ran, and refuses what has a file here
		b := r.box("i-1", "hooks: {before_flip: 'echo $DEPLOY_RELEASE >> "+dir+"/told; [ ! -e "+dir+"/$DEPLOY_RELEASE ]'}")
		b.boot()
		refuse := func(id release.ID) {
			if err := os.WriteFile(filepath.Join(dir, string(id)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		back := func(id release.ID) { r.point(id, len(paths), `kind "rollback"`) }
		aborted := func(epoch int64) {
			t.Helper()
			r.until("abort", 15*time.Second, func() bool { return r.head().Epoch == epoch && r.head().State == fleet.Abort })
		}
		ran := func(id release.ID, want ...int) {
			t.Helper()
			text, _ := os.ReadFile(filepath.Join(dir, "told"))
			if n := strings.Count(string(text), string(id)); !slices.Contains(want, n) {
				t.Errorf("before_flip ran %d times for %s, want one of %d", n, id, want)
			}
		}
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		refuse(r2)
		r.push(r2)
		aborted(2)
		back(r2) // on the disk, and never passed
		aborted(3)
		ran(r2, 2)
		if n := r.bucket.times(r2, "a.php"); n != 1 || b.active() != r1 {
			t.Errorf("fetched %d times, active is %s", n, b.active())
		}

		r.push(r3)
		r.live(r3, 15*time.Second, b)
		b.stop()
		b.boot() // what passed is durable
		b.says("serving "+string(r3), 10*time.Second, true)
		back(r1)
		r.live(r1, 15*time.Second, b)
		ran(r1, 1)

		if err := os.WriteFile(filepath.Join(b.cfg.Root, string(r3), "a.php"), []byte("edited"), 0o644); err != nil {
			t.Fatal(err)
		}
		refuse(r3)
		back(r3) // fetched again: what the hook had made is gone
		aborted(6)
		back(r3)
		aborted(7)
		// Once as new, at each of two tries to go back, and maybe when the idle machine brought it up to be ready for one.
		ran(r3, 3, 4)
		if n := r.bucket.times(r3, "a.php"); n != 2 || b.active() != r1 {
			t.Errorf("fetched %d times, active is %s", n, b.active())
		}
	})
}

func TestReleasesThatNeverWorkedDoNotPushGoodOnesOut(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", "keep_releases: 1", "keep_for: 0s",
			"health_check: {rollback: false}", "hooks: {after_flip: '[ $DEPLOY_RELEASE = "+string(r1)+" ] || [ $DEPLOY_RELEASE = "+string(r4)+" ]'}")
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		for n, id := range []release.ID{r2, r3} {
			r.push(id)
			r.until("failure", 20*time.Second, func() bool {
				m, _ := r.row(b.id)
				return m.Failed == int64(n+2) && r.head().State == fleet.Done
			})
		}
		b.stop()
		b.boot()
		r.push(r4)
		r.live(r4, 20*time.Second, b)
		r.until("clean", 5*time.Second, func() bool { return !slices.Contains(b.names(), string(r2)) })
		time.Sleep(2 * time.Hour) // cleaned again, when nothing but its having been good keeps r1
		if got, want := b.names(), []string{string(r1), string(r3), string(r4), "active", "previous"}; !slices.Equal(got, want) {
			t.Errorf("root has %q, want %q: the good one, the one before, the live one", got, want)
		}
		r.until("forgotten", 5*time.Second, func() bool {
			of := recall(b.disk, logger()).of
			return len(of) == 3 && of[r2] == deeds{}
		})
	})
}

func TestDamagedPastIsForgotten(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", "hooks: {before_flip: 'true'}")
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.stop()
		file := filepath.Join(b.cfg.StateDir, pastFile+".json")
		if err := os.WriteFile(file, []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.boot()
		r.push(r2)
		r.live(r2, 15*time.Second, b)
		if d := recall(b.disk, logger()).of[r2]; !d.Settled || d.Prepared == "" {
			t.Errorf("remembered of the release after it: %+v", d)
		}
	})
}

func TestOfAHookThatThereIsNotNothingIsWaitedForToBeNoted(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		if got, want := recall(b.disk, logger()).of[r1], (deeds{Settled: true}); got != want {
			t.Errorf("remembered %+v, want %+v", got, want)
		}
	})
}

// slow is one machine's way to a bucket that holds it up.
type slow struct {
	*bucket
	hold *hold
}

func (s *slow) Open(ctx context.Context, id release.ID, o release.Object) (io.ReadCloser, error) {
	if err := s.hold.gate(ctx, string(id)+"/"+o.Path); err != nil {
		return nil, err
	}
	return s.bucket.Open(ctx, id, o)
}

func TestJoinerFetchesTheReleaseToGoBackTo(t *testing.T) {
	bubble(t, func(r *rig) {
		old := r.box("i-1", "health_check: {rollback: false}", "hooks: {before_flip: '[ $DEPLOY_RELEASE != "+string(r3)+" ]', after_flip: '[ $DEPLOY_RELEASE = "+string(r1)+" ]'}")
		refusal := holding(string(r3) + "/a.php")
		old.bucket = &slow{r.bucket, refusal}
		old.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, old)
		r.push(r2)
		r.until("not healthy", 20*time.Second, func() bool { return r.head().Release == r2 && r.head().State == fleet.Done })
		if good := r.head().Good.Release; good != r1 {
			t.Fatalf("good is %s", good)
		}
		h := holding(string(r1) + "/a.php")
		r.bucket.through(h.gate)
		b := r.boot("i-2")[0]
		r.until("ready", 20*time.Second, func() bool { return len(b.service.readies()) == 1 })
		r.until("the rest", 20*time.Second, func() bool { return r.bucket.times(r1, "b.php") == 2 })
		if s := b.agent.Status(); s.Line != "serving "+string(r2) || !s.Healthy {
			t.Errorf("meanwhile: %+v", s)
		}
		r.push(r3) // what is wanted goes first, until the other refuses it
		r.until("r3 is there", 20*time.Second, func() bool { return slices.Contains(b.names(), string(r3)) })
		if slices.Contains(b.names(), string(r1)) {
			t.Error("the spare one was not given up")
		}
		close(refusal.open)
		r.until("abort", 20*time.Second, func() bool { return r.head().State == fleet.Abort })
		close(h.open)
		r.until("fetched", time.Minute, func() bool { return slices.Contains(b.names(), string(r1)) })
		time.Sleep(10 * time.Minute)
		for _, p := range paths {
			if n := r.bucket.times(r1, p); n != 2 {
				t.Errorf("%s fetched %d times by two instances", p, n)
			}
		}
		if b.active() != r2 {
			t.Errorf("active is %s", b.active())
		}
	})
}

func TestReleaseToGoBackToIsTriedAgainLater(t *testing.T) {
	bubble(t, func(r *rig) {
		old := r.box("i-1", "health_check: {rollback: false}", "hooks: {after_flip: '[ $DEPLOY_RELEASE = "+string(r1)+" ]'}")
		old.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, old)
		r.push(r2)
		r.until("not healthy", 20*time.Second, func() bool { return r.head().Release == r2 && r.head().State == fleet.Done })
		r.bucket.upload(r1, "a.php", "changed")
		b := r.boot("i-2")[0]
		r.until("ready", 20*time.Second, func() bool { return len(b.service.readies()) == 1 })
		time.Sleep(time.Minute)
		r.bucket.upload(r1, "a.php", string(r1)+" a.php")
		if s := b.agent.Status(); s.Line != "serving "+string(r2) || !s.Healthy {
			t.Errorf("its failing is shown: %+v", s)
		}
		took := r.until("fetched", 10*time.Minute, func() bool { return slices.Contains(b.names(), string(r1)) })
		if took < 3*time.Minute || took > spareRetry {
			t.Errorf("tried again after another %v", took)
		}
		b.agent.Reload(nil)
		if err := b.wait(); err == nil {
			t.Error("it did not end for its new settings")
		}
	})
}
