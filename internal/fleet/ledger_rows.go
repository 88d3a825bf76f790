package fleet

import (
	"context"
	"errors"
	"time"

	"s3pulldeploy/internal/failpoint"
)

// Register writes a member's row afresh. Condition: there is no row, or it is another incarnation's.
func (l *Ledger) Register(ctx context.Context, m Member) error {
	if err := failpoint.Hit("A3"); err != nil {
		return err
	}
	w := Write{Set: m.attributes(), Remove: []string{"ttl"}, If: Or{Absent{"pk"}, Compare{"incarnation", Ne, m.Incarnation}}}
	w.Set["incarnation"], w.Set["beat"] = m.Incarnation, m.Beat
	_, err := l.write(ctx, l.memberKey(m.Instance), w)
	failpoint.Landed("A3")
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		return nil // our own row is there already; the next beat brings it up to date
	}
	return wrap("register", err)
}

// Beat writes what the member has to say under a higher beat. Condition: the row is there, of this incarnation, with
// a lower beat. Fails with [ErrGone] or [ErrDuplicate].
func (l *Ledger) Beat(ctx context.Context, m Member) error {
	w := Write{Set: m.attributes(), Remove: []string{"ttl"}, If: And{
		Exists{"pk"}, Compare{"incarnation", Eq, m.Incarnation}, Compare{"beat", Lt, m.Beat},
	}}
	w.Set["beat"] = m.Beat
	_, err := l.write(ctx, l.memberKey(m.Instance), w)
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		if refused.Item == nil {
			return ErrGone
		}
		if row, derr := decodeMember(refused.Item); derr != nil || row.Incarnation != m.Incarnation {
			return ErrDuplicate
		}
		return nil // a later beat of our own is there
	}
	return wrap("beat", err)
}

// Row reads one member's row, strongly consistent; nil without an error when there is none.
func (l *Ledger) Row(ctx context.Context, instance string) (*Member, error) {
	it, err := l.table.Get(ctx, l.memberKey(instance), true)
	if err != nil || it == nil {
		return nil, wrap("read member", err)
	}
	m, err := decodeMember(it)
	if err != nil {
		return nil, wrap("read member", err)
	}
	return &m, nil
}

// CountMissed notes that a member was silent through the decided epoch. Condition: the row is unchanged.
func (l *Ledger) CountMissed(ctx context.Context, m Member, epoch int64, now time.Time) error {
	set := Item{"missed": m.Missed + 1, "missed_epoch": epoch}
	if m.Missed+1 >= lostAfter {
		set["ttl"] = now.Add(rowTTL).Unix()
	}
	_, err := l.table.Write(ctx, l.memberKey(m.Instance), Write{Set: set, If: And{
		Compare{"incarnation", Eq, m.Incarnation},
		Compare{"beat", Eq, m.Beat},
		Compare{"missed_epoch", Lt, epoch},
	}})
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		return nil // it lives, or the epoch was counted
	}
	return wrap("count missed", err)
}

// Remove deletes a member's row: its own incarnation's, when the machine goes.
func (l *Ledger) Remove(ctx context.Context, m Member) error {
	err := l.table.Delete(ctx, l.memberKey(m.Instance), Compare{"incarnation", Eq, m.Incarnation})
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		return nil
	}
	return wrap("remove member", err)
}

// Forget deletes the row of a member that is gone. Condition: it is unchanged since it was read; fails with [ErrOvertaken].
func (l *Ledger) Forget(ctx context.Context, m Member) error {
	err := l.table.Delete(ctx, l.memberKey(m.Instance), And{
		Compare{"incarnation", Eq, m.Incarnation}, Compare{"beat", Eq, m.Beat},
	})
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		if refused.Item == nil {
			return nil
		}
		err = ErrOvertaken
	}
	return wrap("forget "+m.Instance, err)
}

func (l *Ledger) memberKey(instance string) Key {
	return Key{memberPartition(l.scope, instance), instance}
}
