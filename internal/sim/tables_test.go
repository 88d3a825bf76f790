package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// tables is what goes wrong with the table itself, in some seeds: keys that are throttled, rows that expire, a head that is
// restored from an older time. It draws from its own source, so that all other seeds stay what they are.
type tables struct {
	w     *scene
	after func(time.Duration, string, func()) // the simulation's own way to do something later
	rng   *rand.Rand
	hot   map[string]time.Duration // keys that are throttled until then
	lost  bool                     // the head was restored and not mended yet
	done  int                      // restored and mended so far
}

func newTables(s *scene, after func(time.Duration, string, func())) *tables {
	return &tables{w: s, after: after, rng: rand.New(rand.NewPCG(s.seed, 11)), hot: map[string]time.Duration{}}
}

func (t *tables) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(t.rng.Float64()*float64(hi-lo))
}

// trouble does one bad thing, and schedules the next.
func (t *tables) trouble(end time.Duration) {
	if t.w.now >= end {
		return
	}
	switch t.rng.IntN(4) {
	case 0:
		t.heat(scope)
	case 1:
		t.heat(fmt.Sprintf("%s#m%02d", scope, t.rng.IntN(16)))
	case 2:
		t.expire()
	case 3:
		t.restore()
	}
	t.after(t.between(10*time.Second, 3*time.Minute), "table trouble", func() { t.trouble(end) })
}

// heat throttles a key.
func (t *tables) heat(key string) {
	t.hot[key] = t.w.now + t.between(time.Second, time.Minute)
	t.w.note("%s is throttled until %v", key, t.hot[key])
}

// throttles says whether a request for a key is turned away.
func (t *tables) throttles(key string) bool {
	return t != nil && !t.w.calm && t.w.now < t.hot[key] && t.rng.Float64() < 0.7
}

// expire deletes the rows of machines that are gone and were lost: their time to live is over.
func (t *tables) expire() {
	for _, id := range slices.Sorted(maps.Keys(t.w.truth.rows)) {
		m := t.w.truth.rows[id]
		gone := slices.ContainsFunc(t.w.machines, func(b *machine) bool { return b.id == id && b.gone })
		if now := t.w.truth.row(id); !gone || !now.Lost() {
			continue
		}
		if err := t.w.ledger().Remove(context.Background(), m); err != nil {
			t.w.fail("row of %s: %v", id, err)
		}
		delete(t.w.truth.rows, id)
		t.w.note("row of %s has expired", id)
	}
}

// restore puts the head back to an earlier epoch, once its own is over and in some row.
func (t *tables) restore() {
	h, rows := t.w.truth.head, slices.Collect(maps.Values(t.w.truth.rows))
	known := fleet.MostActive(rows) != "" && slices.ContainsFunc(rows, func(m fleet.Member) bool { return m.Newest() == h.Epoch })
	if t.lost || t.w.calm {
		return
	}
	if !known || h.State != fleet.Done {
		t.after(2*time.Second, "restore", t.restore)
		return
	}
	key, ctx := fleet.Key{Partition: scope, Sort: "head"}, context.Background()
	now, _ := t.w.mem.Get(ctx, key, true)
	for back := 1; back < 8; back++ {
		old, err := t.w.mem.Past(back).Get(ctx, key, false)
		if epoch, _ := old["epoch"].(int64); err != nil || old == nil || epoch >= h.Epoch {
			continue
		}
		var remove []string
		for name := range now {
			if _, ok := old[name]; !ok {
				remove = append(remove, name)
			}
		}
		if _, err := t.w.mem.Write(ctx, key, fleet.Write{Set: old, Remove: remove}); err != nil {
			t.w.fail("restore: %v", err)
		}
		t.w.truth.head, _, _ = t.w.ledger().Head(ctx, true)
		t.lost = true
		maps.DeleteFunc(t.w.truth.held, func(s int64, _ bool) bool { return !t.w.truth.head.Held(s) }) // a later hold is lost with the head that had it
		t.w.note("the head is restored from epoch %d", t.w.truth.head.Epoch)
		t.after(t.between(10*time.Second, 3*time.Minute), "push -init", t.mend)
		return
	}
}

// mend is push -init: the head is written anew from what the members report, or from the pointer where none reports anything.
func (t *tables) mend() {
	ctx, l := context.Background(), t.w.ledger()
	rows, err := l.Members(ctx)
	var note *fleet.Note
	if err == nil {
		note, err = t.note(fleet.MostActive(rows))
	}
	var h fleet.Head
	if err == nil {
		h, err = l.Reseed(ctx, t.w.truth.head, rows, *note, t.w.wall())
	}
	if err != nil {
		t.w.fail("push -init: %v", err)
		return
	}
	t.w.note("push -init: epoch %d, committed to %s", h.Epoch, h.Release)
	t.w.truth.become(h)
	t.w.truth.commits[h.Epoch], t.w.truth.decisions[h.Epoch] = h, fleet.Commit
	t.w.truth.committedAt = t.w.now
	t.lost = false
	t.done++
}

// note is the newest note of a release; without one, the pointer's.
func (t *tables) note(id release.ID) (*fleet.Note, error) {
	for _, sequence := range slices.Backward(slices.Sorted(maps.Keys(t.w.pushed))) {
		if id == "" || t.w.pushed[sequence] != id {
			continue
		}
		if note, err := t.w.ledger().Note(context.Background(), sequence); err != nil || note != nil {
			return note, err
		}
	}
	note, err := fleet.NewNote(t.w.pointer)
	note.Digest = t.w.digest(note.Pointer.Release)
	return &note, err
}
