package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
)

func TestRefusedPointerIsShownAndLookedAtAgain(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		good, _ := r.bucket.stands()
		r.bucket.point([]byte("<html>not a pointer"))
		b.says("pointer: pointer", 10*time.Second, true)
		_, before := r.bucket.stands()
		time.Sleep(20 * time.Second)
		if _, now := r.bucket.stands(); now-before < 3 {
			t.Errorf("the refused pointer was read %d times in 20 s, at an interval of 5 s", now-before)
		}
		if !b.agent.Status().Healthy || b.active() != r1 {
			t.Errorf("healthy %v, active %s", b.agent.Status().Healthy, b.active())
		}
		r.bucket.point(good) // the very same object: its ETag is the one that was remembered
		b.says("pointer:", 10*time.Second, false)
		_, before = r.bucket.stands()
		time.Sleep(20 * time.Second)
		if _, now := r.bucket.stands(); now != before {
			t.Errorf("an unchanged pointer was answered in full %d times", now-before)
		}
		r.bucket.point([]byte("garbage"))
		b.says("pointer: pointer", 10*time.Second, true)
		r.push(r2)
		r.live(r2, 20*time.Second, b)
		b.says("pointer:", time.Second, false)
	})
}

func TestPointerThatCannotBeReadIsShownUntilItCan(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		r.bucket.through(func(context.Context, string) error { return fmt.Errorf("read pointer: %w", store.ErrUnavailable) })
		b.says("pointer: read pointer: S3 unavailable", 10*time.Second, true)
		if s := b.agent.Status(); !s.Healthy || !s.Ready {
			t.Errorf("losing S3 changed what is said: healthy %v, ready %v", s.Healthy, s.Ready)
		}
		r.bucket.through(nil)
		b.says("pointer:", 10*time.Second, false)
	})
}

// S3 takes connections and answers nothing: that is said soon, each poll is another try, and the first that is answered is all that it
// takes.
func TestPointerReadThatHangsIsSaidAndTriedAtTheNextPoll(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		var tries atomic.Int32
		r.bucket.through(func(ctx context.Context, _ string) error {
			tries.Add(1)
			<-ctx.Done()
			return ctx.Err()
		})
		b.says("pointer: read pointer: S3 unavailable: no answer within 10s", 5*time.Second+pointerTime+time.Second, true)
		time.Sleep(time.Minute)
		if n := tries.Load(); n < 4 {
			t.Errorf("%d tries in more than a minute", n)
		}
		if s := b.agent.Status(); !s.Healthy || !s.Ready {
			t.Errorf("healthy %v, ready %v", s.Healthy, s.Ready)
		}
		r.bucket.through(nil)
		r.push(r2)
		r.live(r2, pointerTime+15*time.Second, b)
		b.says("pointer:", time.Second, false)
	})
}

func TestIncompleteReleaseIsLookedAtAgain(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		for _, p := range paths[1:] {
			r.bucket.upload(r1, p, p)
		}
		r.point(r1, len(paths))
		b.says("has 3 files where the pointer says 4", 15*time.Second, true)
		time.Sleep(time.Minute)
		if h := r.head(); h.Epoch != 0 {
			t.Errorf("an epoch was opened for it: %+v", h)
		}
		r.bucket.upload(r1, paths[0], "late")
		r.live(r1, 45*time.Second, b)
		b.says("pointer:", time.Second, false)
	})
}

func TestWhatWasWrongWithAPointerEndsWithTheNextOne(t *testing.T) {
	bubble(t, func(r *rig) {
		boxes := r.boot("i-1", "i-2")
		r.push(r1)
		r.live(r1, 60*time.Second, boxes...)
		r.point(r2, 9)
		for _, b := range boxes {
			b.says("where the pointer says 9", 45*time.Second, true)
		}
		r.push(r3)
		r.live(r3, 20*time.Second, boxes...)
		for _, b := range boxes { // one of them opened the epoch; the other never looked at r3's listing before
			b.says("pointer:", 10*time.Second, false)
		}
	})
}

func TestContentsOfABucketWithKMSAreTaken(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		for _, p := range paths {
			r.bucket.upload(r1, p, p)
		}
		r.bucket.relabel(r1)
		r.point(r1, len(paths))
		r.live(r1, 15*time.Second, b)
	})
}

func TestStaleReplayIsRefused(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		old, _ := r.bucket.stands()
		r.push(r2)
		r.live(r2, 15*time.Second, b)
		r.bucket.point(old)
		b.says("is older than", 10*time.Second, true)
		b.stop()
		b.boot() // the floor is durable
		b.says("is older than", 10*time.Second, true)
		time.Sleep(time.Minute)
		if h := r.head(); h.Epoch != 2 || h.State != fleet.Done || b.active() != r2 {
			t.Errorf("head %+v, active %s", h, b.active())
		}
	})
}

func TestPointerThatTheTableContradictsIsOfferedAgain(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		other, err := fleet.NewNote(fmt.Appendf(nil, "%s\n%d\n4", r3, time.Now().Add(time.Minute).Unix()))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.ledger().PutNote(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		r.seq = other.Sequence - 1
		r.push(r2)
		b.says("known with other contents", 20*time.Second, true)
		time.Sleep(time.Minute)
		if h := r.head(); h.Epoch != 1 || b.active() != r1 {
			t.Errorf("head %+v, active %s", h, b.active())
		}
		key := fleet.Key{Partition: "bucket/promo", Sort: fmt.Sprintf("note#%d", other.Sequence)}
		if err := r.table.Delete(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
		r.live(r2, 20*time.Second, b)
		b.says("pointer:", time.Second, false)
	})
}
