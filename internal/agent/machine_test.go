package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/hook"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

func TestWhoseFaultItIs(t *testing.T) {
	for _, c := range []struct {
		err     error
		machine bool
	}{
		{store.ErrUnavailable, true},
		{store.ErrDenied, true},
		{store.ErrNoCredentials, true},
		{store.ErrNoBucket, true},
		{store.ErrRegion, true},
		{hook.ErrPrivilege, true},
		{disk.ErrNoSpace, true},
		{disk.ErrSharedMissing, true},
		{store.ErrNotFound, false},
		{store.ErrChanged, false},
		{store.ErrDamaged, false},
		{disk.ErrListing, false},
		{disk.ErrContent, false},
		{&hook.ExitError{Name: "before_flip", Code: 1}, false},
		{hook.ErrTimeout, false},
		{&release.Error{What: "listing", Rule: "has 2 files where the pointer says 3"}, false},
	} {
		if got := isMachine(fmt.Errorf("stage release: %w", c.err)); got != c.machine {
			t.Errorf("%v: the machine's: %v, want %v", c.err, got, c.machine)
		}
	}
}

type jumpy struct{ now atomic.Int64 }

func (c *jumpy) Boot() time.Duration { return time.Duration(c.now.Load()) }
func (c *jumpy) Now() time.Time      { return time.Now() }

func TestWaitUntilGoesByTheBootClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := &jumpy{}
		go func() {
			time.Sleep(1500 * time.Millisecond)
			c.now.Store(int64(time.Hour)) // suspended meanwhile: timers stood still, the boot clock did not
		}()
		if err := waitUntil(t.Context(), c, 30*time.Minute); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("woke %v after the clock had jumped", took-1500*time.Millisecond)
		}
		if err := waitUntil(t.Context(), c, time.Minute); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("a moment that is over: %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := waitUntil(ctx, c, 2*time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
}

func TestTeardownRunsBackwardsAndNamesWhatFails(t *testing.T) {
	var order []string
	d := &teardown{}
	for _, name := range []string{"close disk", "stop schedule"} {
		d.add(name, func() error { order = append(order, name); return errors.New("broken") })
	}
	err := d.run()
	if want := "stop schedule: broken\nclose disk: broken"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if len(order) != 2 || order[0] != "stop schedule" || d.run() != nil {
		t.Errorf("ran %q, and again", order)
	}
}

func TestHooksBeforeTheVoteShareThePrepareTime(t *testing.T) {
	r := &rig{t: t, bucket: newBucket(), table: table.NewMemory(), began: time.Now()} // no bubble: the hook takes real time
	b := r.box("i-1", "prepare_timeout: 1m")
	if err := b.prepare(); err != nil {
		t.Fatal(err)
	}
	defer b.disk.Close()
	m := b.agent.machine
	m.prepareEnds = time.Now().Add(time.Second) // what the hook before has left
	began := time.Now()
	err := m.prepareHook(t.Context(), "before_flip", "sleep 60", b.cfg.Root, fleet.Want{})
	late := err != nil && strings.Contains(err.Error(), "no time is left") // before it began
	if took := time.Since(began); !errors.Is(err, hook.ErrTimeout) && !late || took > 30*time.Second {
		t.Errorf("after %v: %v, want it timed out after 1s, not hooks.timeout", took, err)
	}
	m.prepareEnds = time.Now()
	if err := m.prepareHook(t.Context(), "before_flip", "true", b.cfg.Root, fleet.Want{}); err == nil || !strings.Contains(err.Error(), "no time is left of prepare_timeout, 1m0s") {
		t.Errorf("without time left: %v", err)
	}
}
