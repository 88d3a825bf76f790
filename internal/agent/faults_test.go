package agent

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
)

func TestShortOutageOfS3IsRiddenOut(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		var tries atomic.Int32
		r.bucket.through(func(ctx context.Context, what string) error {
			if strings.HasSuffix(what, "/lib/d.php") && tries.Add(1) < attempts {
				return store.ErrUnavailable
			}
			return ctx.Err()
		})
		r.push(r1)
		r.live(r1, 30*time.Second, b)
		if h := r.head(); h.Epoch != 1 {
			t.Errorf("took %d epochs, want the first to ride it out", h.Epoch)
		}
		if n := r.bucket.times(r1, "a.php"); n != 1 {
			t.Errorf("a.php fetched %d times", n)
		}
	})
}

func TestMachineThatCannotReachS3StepsOutAndComesBack(t *testing.T) {
	bubble(t, func(r *rig) {
		way := &ownWay{bucket: r.bucket}
		ill := r.box("i-3")
		ill.bucket = way
		ill.boot()
		boxes := append(r.boot("i-1", "i-2"), ill)
		r.push(r1)
		r.live(r1, 60*time.Second, boxes...)
		way.cut.Store(true)
		r.push(r2)
		r.live(r2, time.Minute, boxes[:2]...)
		m, _ := r.row("i-3")
		if m.Vote.Yes || m.Vote.Kind != fleet.AboutMachine || m.Phase != fleet.Out || !strings.Contains(m.Error, "S3 unavailable") {
			t.Errorf("row of the machine that is cut off: %+v", m)
		}
		if s := ill.agent.Status(); s.Healthy || !strings.HasPrefix(s.Line, "unfit") && !strings.HasPrefix(s.Line, "stage") {
			t.Errorf("its status: healthy %v, %q", s.Healthy, s.Line)
		}
		if ill.active() != r1 {
			t.Errorf("it serves %q, want what it had", ill.active())
		}
		way.cut.Store(false)
		r.live(r2, time.Minute, boxes...)
		r.until("healthy", 5*time.Second, func() bool { return ill.agent.Status().Healthy })
	})
}

func TestLoneMachineIsBackInServiceWhenS3StaysAway(t *testing.T) {
	bubble(t, func(r *rig) {
		way := &ownWay{bucket: r.bucket}
		b := r.box("i-1")
		b.bucket = way
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		way.cut.Store(true)
		r.push(r2)
		r.until("abort", time.Minute, func() bool { return r.head().Epoch == 2 && r.head().State == fleet.Abort })
		if h := r.head(); !strings.HasPrefix(h.Reason, "all members unfit") || h.RetryAt == 0 {
			t.Errorf("aborted with %q, retry at %d", h.Reason, h.RetryAt)
		}
		r.until("healthy", 5*time.Second, func() bool { return b.agent.Status().Healthy })
		way.cut.Store(false)
		r.live(r2, 45*time.Second, b)
	})
}

func TestRefusedReleaseAbortsForAll(t *testing.T) {
	bubble(t, func(r *rig) {
		var boxes []*box
		for _, id := range []string{"i-1", "i-2"} {
			b := r.box(id, "hooks: {before_flip: '[ $DEPLOY_RELEASE != "+string(r2)+" ] || { echo no such table; exit 3; }'}")
			b.boot()
			boxes = append(boxes, b)
		}
		r.push(r1)
		r.live(r1, 60*time.Second, boxes...)
		r.push(r2)
		r.until("abort", 15*time.Second, func() bool { return r.head().State == fleet.Abort && r.head().Release == r2 })
		h := r.head()
		if !strings.Contains(h.Reason, "no such table") || h.Hold != h.Sequence {
			t.Errorf("aborted with reason %q, hold %d of %d", h.Reason, h.Hold, h.Sequence)
		}
		time.Sleep(time.Minute)
		for _, b := range boxes {
			m, _ := r.row(b.id)
			if b.active() != r1 || m.Phase != fleet.Serve || !b.agent.Status().Healthy {
				t.Errorf("%s serves %s, phase %s, %q", b.id, b.active(), m.Phase, b.agent.Status().Line)
			}
		}
		if h := r.head(); h.Epoch != 2 {
			t.Errorf("tried again: epoch %d", h.Epoch)
		}
	})
}

func TestChangedListingIsNotTaken(t *testing.T) {
	bubble(t, func(r *rig) {
		old := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, old)
		r.bucket.upload(r1, "a.php", "<?php evil();")
		b := r.boot("i-2")[0]
		b.says("its objects were changed", 10*time.Second, true)
		time.Sleep(time.Minute)
		if slices.Contains(b.names(), string(r1)) || b.active() != "" || b.agent.Status().Healthy || len(b.service.readies()) > 0 {
			t.Errorf("root %q, healthy %v", b.names(), b.agent.Status().Healthy)
		}
		r.bucket.upload(r1, "a.php", string(r1)+" a.php")
		r.live(r1, time.Minute, old, b)
	})
}
