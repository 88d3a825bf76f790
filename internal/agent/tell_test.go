package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/notify"
	"s3pulldeploy/internal/release"
)

// postbox is what a fleet's agents had people told of.
type postbox struct {
	mu  sync.Mutex
	got []notify.Outcome
}

func (p *postbox) Send(_ context.Context, o notify.Outcome) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, o)
	return errors.New("the topic is gone") // which must not matter to anybody
}

func (p *postbox) all() []notify.Outcome {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func TestEachEpochIsToldOfOnce(t *testing.T) {
	bubble(t, func(r *rig) {
		boxes := r.boot("i-1", "i-2")
		ill := r.box("i-3", `hooks: {before_flip: 'test "$DEPLOY_RELEASE" = `+string(r1)+`'}`)
		ill.boot()
		boxes = append(boxes, ill)
		boxes[0].says("waiting for the first push", 5*time.Second, true)
		r.push(r1)
		r.live(r1, time.Minute, boxes...)
		r.push(r2)
		r.until("abort", time.Minute, func() bool { return r.head().State == fleet.Abort })
		r.until("two outcomes", time.Minute, func() bool { return len(r.told.all()) == 2 })
		time.Sleep(time.Minute)
		got := r.told.all()
		if len(got) != 2 {
			t.Fatalf("told %d times: %+v", len(got), got)
		}
		if o := got[0]; !o.Success() || o.Release != string(r1) || o.Site != "promo" || o.Members != 3 || o.Epoch != 1 || o.Took <= 0 || o.Kind != "deploy" {
			t.Errorf("first: %+v", o)
		}
		if o := got[1]; o.Outcome != notify.Aborted || o.Success() || !strings.Contains(o.Reason, "i-3: hook before_flip: exit code 1") || len(o.Nos) != 1 {
			t.Errorf("second: %+v", o)
		}
	})
}

func TestHowLongItTookIsOnlySaidWhereThePushIsKnown(t *testing.T) {
	l := fleet.Log{Epoch: 3, Outcome: string(fleet.Done), Release: r1, Sequence: 1000, At: 1012}
	if o := outcome(l, release.Pointer{Release: r1, Author: "ann"}); o.Took != 12*time.Second || o.Author != "ann" || o.Outcome != notify.Done {
		t.Errorf("a deploy: %+v", o)
	}
	if o := outcome(l, release.Pointer{}); o.Took != 0 {
		t.Errorf("without its pointer: %v", o.Took)
	}
	l.Kind = fleet.KindRollback // by itself: it names the note of the good release, pushed long ago
	if o := outcome(l, release.Pointer{Release: r1}); o.Took != 0 || o.Kind != "rollback" {
		t.Errorf("a rollback of the fleet's own: %+v", o)
	}
}
