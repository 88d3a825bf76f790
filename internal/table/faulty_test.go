package table

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
)

// always is a hook that answers the same.
func always(f Fault) func(context.Context, Request) Fault {
	return func(context.Context, Request) Fault { return f }
}

func TestFaultsDoToWritesWhatTheySay(t *testing.T) {
	for name, c := range map[string]struct {
		fault Fault
		want  error
		there bool // the write has happened when the caller hears
		late  int  // writes that land afterwards
	}{
		"none":         {None, nil, true, 0},
		"throttle":     {Throttle, fleet.ErrThrottled, false, 0},
		"lose request": {LoseRequest, fleet.ErrUnavailable, false, 0},
		"lose reply":   {LoseReply, fleet.ErrUnavailable, true, 0},
		"late":         {Late, fleet.ErrUnavailable, false, 1},
		"stale":        {Stale, nil, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory()
			f := &Faulty{Table: m, Hook: always(c.fault)}
			_, err := f.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"n": int64(1)}})
			if !errors.Is(err, c.want) {
				t.Errorf("write: got error %v, want %v", err, c.want)
			}
			if there := get(t, m, true) != nil; there != c.there {
				t.Errorf("written: %v, want %v", there, c.there)
			}
			if landed := f.Land(); landed != c.late || f.Land() != 0 {
				t.Errorf("%d writes landed, want %d, once", landed, c.late)
			}
			if c.late > 0 && get(t, m, true) != int64(1) {
				t.Error("a late write did not land")
			}

			set(t, m, 2)
			if err := f.Delete(t.Context(), key, nil); !errors.Is(err, c.want) {
				t.Errorf("delete: got error %v, want %v", err, c.want)
			}
			if there := get(t, m, true) != nil; there == c.there {
				t.Errorf("still there after delete: %v, want %v", there, !c.there)
			}
		})
	}
}

func TestALateWriteIsJudgedWhenItLands(t *testing.T) {
	m := NewMemory()
	f := &Faulty{Table: m, Hook: always(Late)}
	set(t, m, 1)
	change := fleet.Item{"n": int64(2)}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := f.Write(ctx, key, fleet.Write{Set: change, If: fleet.Compare{Attr: "n", Op: fleet.Eq, Value: int64(1)}})
	if !errors.Is(err, fleet.ErrUnavailable) {
		t.Fatal(err)
	}
	cancel()                // the caller gave up, the request is on its way
	change["n"] = int64(99) // and its map is its own again
	set(t, m, 5)
	f.Land()
	if got := get(t, m, true); got != int64(5) {
		t.Errorf("got %v: the condition was judged too early", got)
	}
	set(t, m, 1)
	if _, err = f.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"n": int64(2)}}); err == nil {
		t.Fatal("a late write was answered")
	}
	f.Land()
	if got := get(t, m, true); got != int64(2) {
		t.Errorf("got %v, want the late write's 2", got)
	}
}

func TestFaultsOfReads(t *testing.T) {
	m := NewMemory()
	set(t, m, 1)
	set(t, m, 2)
	var asked []Request
	fault := None
	f := &Faulty{Table: m, Hook: func(_ context.Context, r Request) Fault {
		asked = append(asked, r)
		return fault
	}}
	for _, c := range []struct {
		fault Fault
		err   error
		value fleet.Value
	}{
		{None, nil, int64(2)},
		{Stale, nil, int64(1)},
		{Throttle, fleet.ErrThrottled, nil},
		{LoseRequest, fleet.ErrUnavailable, nil},
		{LoseReply, fleet.ErrUnavailable, nil},
	} {
		fault = c.fault
		it, err := f.Get(t.Context(), key, false)
		items, qerr := f.Query(t.Context(), key.Partition, "", false)
		if !errors.Is(err, c.err) || !errors.Is(qerr, c.err) {
			t.Errorf("fault %d: got errors %v and %v, want %v", c.fault, err, qerr, c.err)
		}
		if c.err == nil && (it["n"] != c.value || items[0]["n"] != c.value) {
			t.Errorf("fault %d: got %v and %v, want %v", c.fault, it, items, c.value)
		}
	}
	fault = Stale
	if got := get(t, f, true); got != int64(2) {
		t.Errorf("a consistent read was stale: %v", got)
	}
	if r := asked[0]; !r.Reads() || r.Method != "Get" || r.Key != key || r.Consistent {
		t.Errorf("the hook was asked about %+v", r)
	}
}

func TestChancesRepeatWithTheirSeedAndKeepTheirShares(t *testing.T) {
	c := Chances{Throttle: 0.1, LoseRequest: 0.1, LoseReply: 0.1, Late: 0.1, Stale: 0.1}
	const n = 10_000
	a, b, other := c.Hook(7), c.Hook(7), c.Hook(8)
	count := make(map[Fault]int)
	differs := false
	for range n {
		x := a(t.Context(), Request{})
		if x != b(t.Context(), Request{}) {
			t.Fatal("the same seed gave another fault")
		}
		differs = differs || x != other(t.Context(), Request{})
		count[x]++
	}
	if !differs {
		t.Error("another seed gave the same faults")
	}
	for fault := Throttle; fault <= Stale; fault++ {
		if share := float64(count[fault]) / n; share < 0.08 || share > 0.12 {
			t.Errorf("fault %d: share %.3f, want about 0.1", fault, share)
		}
	}
}

func TestAHookMayDelayInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		slow := &Faulty{Table: m, Hook: func(context.Context, Request) Fault {
			time.Sleep(time.Minute)
			return None
		}}
		start := time.Now()
		done := make(chan error)
		go func() {
			_, err := slow.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"n": int64(1)}})
			done <- err
		}()
		synctest.Wait()
		if got := get(t, m, true); got != nil {
			t.Errorf("a delayed write is there already: %v", got)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if waited := time.Since(start); waited != time.Minute || get(t, m, true) != int64(1) {
			t.Errorf("waited %v, item %v", waited, get(t, m, true))
		}
	})
}
