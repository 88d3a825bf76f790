package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
)

// What the protocol's writes can be refused for.
var (
	// ErrOvertaken: the head is not any more what the write was based on. Read it again.
	ErrOvertaken = errors.New("the head has moved on")
	// ErrGone: the member's row is not in the table any more. Stop acting, register again.
	ErrGone = errors.New("the member's row is gone")
	// ErrDuplicate: the row belongs to another incarnation. Stop acting.
	ErrDuplicate = errors.New("duplicate id: another agent has registered as this instance")
	// ErrSchema: the items were written by a newer version.
	ErrSchema = errors.New("written by a newer version of the agent")
	// ErrEquivocation: the sequence is known with other contents.
	ErrEquivocation = errors.New("the sequence is already known with other contents")
)

// Ledger is one scope's items in the table and the conditional writes that the protocol allows.
type Ledger struct {
	table Table
	scope string
	token func() string // fresh for each write
	// Keys are whose signatures a pointer needs; nil: none. They are set before the first use.
	Keys *release.Keyring
	// Parallel is how many partitions a sweep reads at a time; 1 makes its order predictable.
	Parallel int
}

// NewLedger returns the ledger of a scope; token makes a fresh random text for each write.
func NewLedger(t Table, scope string, token func() string) *Ledger {
	return &Ledger{table: t, scope: scope, token: token, Parallel: partitions}
}

func (l *Ledger) headKey() Key { return Key{l.scope, "head"} }

// Head reads the head; ok is false when there is none yet.
func (l *Ledger) Head(ctx context.Context, consistent bool) (h Head, ok bool, err error) {
	if err := failpoint.Hit("A4"); err != nil {
		return Head{}, false, err
	}
	it, err := l.table.Get(ctx, l.headKey(), consistent)
	if err != nil || it == nil {
		return Head{}, false, wrap("read head", err)
	}
	h, err = decodeHead(it)
	return h, err == nil, wrap("read head", err)
}

// Note reads the note of a sequence and verifies its pointer; nil without an error when there is none. A note never changes, so an
// eventually consistent read that has it will do: with strong ones alone, 10,000 members ask one key for more than it gives.
func (l *Ledger) Note(ctx context.Context, sequence int64) (*Note, error) {
	key := Key{l.scope, noteSort(sequence)}
	it, err := l.table.Get(ctx, key, false)
	if err == nil && it == nil {
		it, err = l.table.Get(ctx, key, true)
	}
	if err != nil || it == nil {
		return nil, wrap("read note", err)
	}
	n, err := decodeNote(sequence, it, l.Verify)
	if err != nil {
		return nil, wrap("read note", err)
	}
	return &n, nil
}

// PutNote stores a note once. A note that is there with the same bytes and digest is a success; with others it is
// [ErrEquivocation].
func (l *Ledger) PutNote(ctx context.Context, n Note) error {
	set := Item{"text": n.Text, "digest": n.Digest, "schema": int64(Schema)}
	_, err := l.write(ctx, Key{l.scope, noteSort(n.Sequence)}, Write{Set: set, If: Absent{"pk"}})
	var refused *ConditionError
	if errors.As(err, &refused) {
		had, derr := decodeNote(n.Sequence, refused.Item, NewNote)
		if derr == nil && string(had.Text) == string(n.Text) && had.Digest == n.Digest {
			return nil
		}
		err = ErrEquivocation
	}
	return wrap(fmt.Sprintf("put note %d", n.Sequence), err)
}

// Members reads all member rows: strongly consistent and complete, or an error.
func (l *Ledger) Members(ctx context.Context) ([]Member, error) {
	parts := make([][]Member, partitions)
	err := l.each(partitions, func(i int) error {
		items, err := l.table.Query(ctx, partitionName(l.scope, i), "", true)
		if err != nil {
			return err
		}
		for _, it := range items {
			m, err := decodeMember(it)
			if err != nil {
				return err
			}
			parts[i] = append(parts[i], m)
		}
		return nil
	})
	if err != nil {
		return nil, wrap("read members", err)
	}
	var all []Member
	for _, p := range parts {
		all = append(all, p...)
	}
	return all, nil
}

// Open starts epoch prev.Epoch+1 for a note that was put before. Condition: no head yet, or the head is at
// prev's epoch, decided, with its hold and what is asked for again, and not frozen (a rollback may pass). healthy says that prev is a
// commit that nobody ended yet, which is a condition then, and that all have reported well: its release is the good one.
func (l *Ledger) Open(ctx context.Context, prev Head, n Note, by string, healthy bool) (Head, error) {
	set := opening(prev, n, by)
	if prev.State == Abort && prev.Reason == reasonSuperseded {
		set["superseded"] = int64(1)
	}
	if prev.Sequence == n.Sequence {
		set["tries"] = prev.Tries
	}
	decided := append(held(prev), asked(prev)...)
	if healthy {
		maps.Copy(set, prev.goodAfter())
		decided = append(decided, Compare{"state", Eq, string(Commit)})
	} else {
		decided = append(decided, In{"state", []Value{string(Abort), string(Commit), string(Done)}})
	}
	if n.Pointer.Kind != KindRollback {
		decided = append(decided, Absent{"frozen"})
	}
	remove := append([]string{"source"}, ofOneEpoch...)
	if prev.Sequence == n.Sequence && prev.Once == prev.onceOver() { // it is not run again for the same sequence
		remove = slices.DeleteFunc(remove, func(attr string) bool { return attr == "once" })
	}
	if prev.Hold == n.Sequence {
		remove = append(remove, "hold")
	}
	return l.writeHead(ctx, "open epoch", Write{Set: set, Remove: remove, If: Or{Absent{"pk"}, decided}})
}

// ofOneEpoch are the attributes that say nothing about the next epoch.
var ofOneEpoch = []string{"flip_delay", "flip_at", "once", "reason", "retry_at", "again", "approved", "excluded", "wave_group", "waits"}

// opening are the attributes of a new epoch for a note.
func opening(prev Head, n Note, by string) Item {
	return Item{
		"epoch": prev.Epoch + 1, "state": string(Prepare), "kind": n.Pointer.Kind, "sequence": n.Sequence,
		"release": string(n.Pointer.Release), "digest": n.Digest, "fence": prev.Fence + 1, "beat": prev.Beat + 1,
		"coordinator": by, "cutoff": int64(0), "wave": int64(0), "superseded": int64(0), "tries": int64(0),
	}
}

// GoBack opens epoch prev.Epoch+1 to the release of an earlier note, and makes the sequence of prev, which the new epoch keeps, a
// bad one: nobody ever opens it again. why says what it failed of. Condition: epoch, fence, hold and what is asked for again as in
// prev, and prev is committed, or was such a rollback already and aborted.
func (l *Ledger) GoBack(ctx context.Context, prev Head, n Note, by, why string) (Head, error) {
	set := opening(prev, n, by)
	set["kind"], set["sequence"], set["source"] = KindRollback, prev.Sequence, n.Sequence
	set["bad"], set["why"] = badWith(prev), cut(why)
	from := Commit
	if prev.State == Abort {
		from, set["tries"] = Abort, prev.Tries
	}
	remove := slices.Clone(ofOneEpoch)
	if prev.Again > prev.Sequence { // of a newer push, which opens when this is over
		remove = slices.DeleteFunc(remove, func(attr string) bool { return attr == "again" })
	}
	if prev.Hold == prev.Sequence {
		remove = append(remove, "hold")
	}
	cond := append(append(held(prev), asked(prev)...), Compare{"state", Eq, string(from)})
	return l.writeHead(ctx, "open rollback", Write{Set: set, Remove: remove, If: cond})
}

// badWith are the bad sequences of the head with its own among them.
func badWith(h Head) []Value {
	bad := h.Bad
	if !h.IsBad(h.Sequence) {
		bad = append(slices.Clone(bad), h.Sequence)
	}
	var out []Value
	for _, s := range bad[max(0, len(bad)-badKept):] {
		out = append(out, s)
	}
	return out
}

// KindRollback is the kind of an epoch and a pointer that go back to an earlier release.
const KindRollback = "rollback"

// TakeOver makes by the coordinator of an undecided or unfinished epoch. Condition: epoch, fence and beat are as seen.
func (l *Ledger) TakeOver(ctx context.Context, seen Head, by string) (Head, error) {
	set := Item{"fence": seen.Fence + 1, "beat": seen.Beat + 1, "coordinator": by}
	return l.writeHead(ctx, "take over", Write{Set: set, If: And{
		Compare{"epoch", Eq, seen.Epoch}, Compare{"fence", Eq, seen.Fence}, Compare{"beat", Eq, seen.Beat},
	}})
}

// Renew is the coordinator's beat, with what it waits for. Condition: epoch, fence, and a lower beat, so that a beat that arrives
// late takes nothing back.
func (l *Ledger) Renew(ctx context.Context, h Head, waits string) (Head, error) {
	beat := h.Beat + 1
	return l.writeHead(ctx, "renew", Write{Set: Item{"beat": beat, "waits": cut(waits)}, If: append(held(h), Compare{"beat", Lt, beat})})
}

// Outcome is a coordinator's decision about an epoch.
type Outcome struct {
	Commit            bool
	Reason            string        // of an abort
	Retry             time.Duration // abort: try again after this; 0 holds the sequence
	FlipDelay         time.Duration // commit
	Now               time.Time     // the coordinator's clock, for flip_at and retry_at
	Members, Excluded int
	// Bad: an abort because those whom a wave has reached failed their checks. The sequence is never opened again.
	Bad bool
}

// Decide writes COMMIT or ABORT. Condition: epoch, open state, release, digest and fence are as in h, so that at most
// one decision of an epoch ever takes effect; a COMMIT of what is no rollback only where nothing is frozen; and an ABORT only
// where the hold is as in h.
func (l *Ledger) Decide(ctx context.Context, h Head, o Outcome) (Head, error) {
	if err := failpoint.Hit("A14"); err != nil {
		return Head{}, err
	}
	w := Write{Set: Item{"members": int64(o.Members), "excluded": int64(o.Excluded), "beat": h.Beat + 1}}
	if o.Commit {
		w.Set["state"] = string(Commit)
		w.Set["committed_epoch"], w.Set["committed_sequence"], w.Set["committed_release"] = h.Epoch, h.Sequence, string(h.Release)
		w.Set["committed_source"] = h.Source
		w.Set["flip_delay"] = o.FlipDelay.Milliseconds()
		w.Set["flip_at"] = o.Now.Add(o.FlipDelay).UnixMilli()
		w.Remove = []string{"reason", "retry_at", "waits"}
	} else {
		w.Set["state"] = string(Abort)
		w.Set["reason"] = cut(o.Reason)
		w.Remove = []string{"waits"}
		switch {
		case o.Bad: // which holds it, too
			w.Set["bad"], w.Set["why"] = badWith(h), cut(o.Reason)
			if h.Hold <= h.Sequence {
				w.Set["hold"] = h.Sequence
			}
		case o.Reason == reasonSuperseded: // the newer pointer opens next
		case o.Retry > 0:
			w.Set["tries"] = h.Tries + 1
			w.Set["retry_at"] = o.Now.Add(o.Retry).Unix()
		case h.Hold > h.Sequence: // a person holds the newer one, and this one is not opened again
		default:
			w.Set["hold"] = h.Sequence
		}
	}
	w.If = append(held(h), In{"state", []Value{string(Prepare), string(Wave)}},
		Compare{"release", Eq, string(h.Release)}, Compare{"digest", Eq, h.Digest})
	if !o.Commit { // a person may have held a sequence just now
		w.If = append(w.If.(And), asRead("hold", h.Hold))
	}
	if o.Commit && h.Kind != KindRollback {
		w.If = append(w.If.(And), Absent{"frozen"})
	}
	if weak.Rule == "M5" {
		w.If = nil
	}
	decided, err := l.writeHead(ctx, "decide", w)
	failpoint.Landed("A14")
	return decided, err
}

// Raise begins a wave: those whom next reaches flip, if they have voted yes. Condition: epoch, open state, fence, a lower beat,
// a lower cutoff, and nothing is frozen.
func (l *Ledger) Raise(ctx context.Context, h, next Head, delay time.Duration, now time.Time) (Head, error) {
	beat := h.Beat + 1
	w := Write{Set: Item{
		"beat": beat, "state": string(Wave), "cutoff": next.Cutoff, "wave": next.Wave, "wave_group": next.WaveGroup,
		"flip_delay": delay.Milliseconds(), "flip_at": now.Add(delay).UnixMilli(),
	}, Remove: []string{"waits"}}
	w.If = append(held(h), In{"state", []Value{string(Prepare), string(Wave)}}, Compare{"beat", Lt, beat}, Compare{"cutoff", Lt, next.Cutoff}, Absent{"frozen"})
	return l.writeHead(ctx, "begin wave", w)
}

// Done ends a committed epoch; healthy makes its release the good one, to roll back to. Condition: epoch, fence,
// state commit.
func (l *Ledger) Done(ctx context.Context, h Head, healthy bool, reason string) (Head, error) {
	w := Write{Set: Item{"state": string(Done), "beat": h.Beat + 1}}
	if healthy {
		maps.Copy(w.Set, h.goodAfter())
	}
	if reason != "" {
		w.Set["reason"] = cut(reason)
	}
	w.If = append(held(h), Compare{"state", Eq, string(Commit)})
	return l.writeHead(ctx, "end epoch", w)
}

// asRead says that an attribute has not changed since it was read; its zero stands for none.
func asRead[T comparable](attr string, v T) Cond {
	if v == *new(T) {
		return Absent{attr}
	}
	return Compare{attr, Eq, v}
}

func held(h Head) And {
	return And{Compare{"epoch", Eq, h.Epoch}, Compare{"fence", Eq, h.Fence}}
}

// asked says that nobody has held anything, or asked for it again, since h was read: a hold of what is held already takes only
// `again` away.
func asked(h Head) And {
	return And{asRead("hold", h.Hold), asRead("again", h.Again)}
}

// Request sets what push asks of the fleet (hint, again, approved, frozen). Condition: the head is at the epoch
// that push read.
func (l *Ledger) Request(ctx context.Context, h Head, set Item, remove ...string) (Head, error) {
	return l.writeHead(ctx, "ask the fleet", Write{Set: set, Remove: remove, If: And{Compare{"epoch", Eq, h.Epoch}}})
}

// Hold keeps a sequence, and what came before it, from being opened, whatever was asked for again, and has an open epoch of it aborted.
// The retry that is planned goes where it is of this sequence; of the fleet's own way back from another one, which still fails, it
// stays, and so does one that was asked for. Condition: the head is at the epoch that push read, no newer hold has come since, which it
// would lower, and where the fleet is on its way back, what is asked for again is as in h.
func (l *Ledger) Hold(ctx context.Context, h Head, sequence int64) (Head, error) {
	remove := []string{"again"}
	cond := And{Compare{"epoch", Eq, h.Epoch}, Or{Absent{"hold"}, Compare{"hold", Lt, sequence + 1}, Compare{"hold", Eq, h.Hold}}}
	switch {
	case h.Sequence == sequence:
		remove = append(remove, "retry_at")
	case h.Automatic():
		cond = append(cond, asRead("again", h.Again))
		if h.Again == h.Sequence {
			remove = nil
		}
	}
	return l.writeHead(ctx, "hold", Write{Set: Item{"hold": sequence}, Remove: remove, If: cond})
}

// PutLog writes an epoch's log; first is true for the one caller who created it.
func (l *Ledger) PutLog(ctx context.Context, log Log, now time.Time) (first bool, err error) {
	w := Write{Set: log.item(now.Add(logTTL).Unix()), If: Absent{"pk"}}
	_, err = l.write(ctx, Key{l.scope, logSort(log.Epoch)}, w)
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, wrap("write epoch log", err)
}

// Logs reads the epoch logs, oldest first.
func (l *Ledger) Logs(ctx context.Context) ([]Log, error) {
	items, err := l.table.Query(ctx, l.scope, "epoch#", false)
	if err != nil {
		return nil, wrap("read epoch log", err)
	}
	var out []Log
	for _, it := range items {
		log, err := decodeLog(it)
		if err != nil {
			return nil, wrap("read epoch log", err)
		}
		out = append(out, log)
	}
	return out, nil
}

// each runs f for 0 to n-1, Parallel at a time, and returns the first error; 1 at a time needs no goroutines.
func (l *Ledger) each(n int, f func(i int) error) error {
	if l.Parallel == 1 {
		for i := range n {
			if err := f(i); err != nil {
				return err
			}
		}
		return nil
	}
	var g errgroup.Group
	g.SetLimit(l.Parallel)
	for i := range n {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}

// writeHead is a conditional write of the head; a refusal is [ErrOvertaken] and comes with the head as it stands.
func (l *Ledger) writeHead(ctx context.Context, what string, w Write) (Head, error) {
	w.Set["schema"] = int64(Schema)
	it, err := l.write(ctx, l.headKey(), w)
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		it, err = refused.Item, ErrOvertaken
	}
	if it == nil {
		return Head{}, wrap(what, err)
	}
	h, derr := decodeHead(it)
	return h, wrap(what, firstOf(err, derr))
}

// write adds a fresh token, and takes a refused condition, or an unknown outcome, with that token in the item
// for the success that it was.
func (l *Ledger) write(ctx context.Context, key Key, w Write) (Item, error) {
	token := l.token()
	w.Set["token"] = token
	it, err := l.table.Write(ctx, key, w)
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		if refused.Item["token"] == token {
			return refused.Item, nil
		}
		return nil, err
	}
	if errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		if now, gerr := l.table.Get(ctx, key, true); gerr == nil && now["token"] == token {
			return now, nil
		}
	}
	return it, err
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
