package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

// onceBox runs a single pass after what went before, and returns how it ended.
func onceBox(r *rig, id string, settings ...string) (*box, error) {
	b := r.box(id, settings...)
	b.once = true
	b.boot()
	return b, b.wait()
}

func TestOnce(t *testing.T) {
	t.Run("nothing was ever pushed", func(t *testing.T) {
		bubble(t, func(r *rig) {
			b, err := onceBox(r, "i-1")
			if _, ok := r.row("i-1"); err != nil || ok || b.active() != "" {
				t.Errorf("ended with %v, row left %v, active %q", err, ok, b.active())
			}
		})
	})
	t.Run("committed by others", func(t *testing.T) {
		bubble(t, func(r *rig) {
			other := r.boot("i-1")[0]
			r.push(r1)
			r.live(r1, 15*time.Second, other)
			b, err := onceBox(r, "i-2")
			if _, ok := r.row("i-2"); err != nil || ok || b.active() != r1 {
				t.Errorf("ended with %v, row left %v, active %q", err, ok, b.active())
			}
		})
	})
	t.Run("pending, and nobody else is there", func(t *testing.T) {
		bubble(t, func(r *rig) {
			r.push(r1)
			b, err := onceBox(r, "i-1")
			if h := r.head(); err != nil || b.active() != r1 || h.State != fleet.Done {
				t.Errorf("ended with %v, active %q, head %+v", err, b.active(), h)
			}
		})
	})
	t.Run("S3 does not answer", func(t *testing.T) {
		bubble(t, func(r *rig) {
			r.bucket.through(func(context.Context, string) error { return store.ErrUnavailable })
			began := time.Now()
			_, err := onceBox(r, "i-1", "prepare_timeout: 2m")
			if took := time.Since(began); !errors.Is(err, ErrOnce) || took < 2*time.Minute || took > 3*time.Minute {
				t.Errorf("ended with %v after %v", err, took)
			}
		})
	})
	t.Run("told to end before the end", func(t *testing.T) {
		bubble(t, func(r *rig) {
			h := holding(string(r1))
			r.bucket.through(h.gate)
			r.push(r1)
			b := r.box("i-1")
			b.once = true
			b.boot()
			b.says("inspect", 10*time.Second, true)
			b.cancel()
			if err := b.wait(); !errors.Is(err, ErrOnce) || !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v, which is a success to the caller", err)
			}
			if _, ok := r.row("i-1"); ok {
				t.Error("its row is still there")
			}
		})
	})
}

func TestOnceIsNotContentWithATableThatDoesNotAnswer(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.stop()
		b.once, b.settings = true, strings.Replace(b.settings, "poll_interval: 1s", "poll_interval: 1s\nprepare_timeout: 1m", 1)
		b.table = &table.Faulty{Table: r.table, Hook: func(context.Context, table.Request) table.Fault { return table.LoseRequest }}
		b.boot()
		if err := b.wait(); !errors.Is(err, ErrOnce) {
			t.Errorf("ended with %v: nobody knows what the fleet runs", err)
		}
	})
}
