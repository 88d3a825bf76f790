package fleet

import (
	"cmp"
	"context"
	"time"

	"s3pulldeploy/internal/release"
)

// MostActive is the release that most members report active; of two with the same number the one of the newer epoch. It
// is empty where nobody reports any.
func MostActive(members []Member) release.ID {
	count, epoch := map[release.ID]int{}, map[release.ID]int64{}
	for _, m := range members {
		if id := m.Active.Release; id != "" {
			count[id]++
			epoch[id] = max(epoch[id], m.Active.Epoch)
		}
	}
	var best release.ID
	for id := range count {
		if cmp.Or(cmp.Compare(count[id], count[best]), cmp.Compare(epoch[id], epoch[best]), cmp.Compare(id, best)) > 0 {
			best = id
		}
	}
	return best
}

// Reseed writes a head that was lost with its table, or is older than what members report: the epoch after the
// highest that they report, done, with the note's release committed. That highest may be one whose wave some are on, with another
// release, and members tell commits apart by their epoch. The lost fence is not known, and an agent that still runs
// ignores a lower one: the wall clock's seconds are above any that was counted up. What a restored head holds, or froze, stays so; what
// was held since is not known any more: members keep only what was rolled back. Condition: the head is still the lost one, so of two
// calls one wins and the other fails with [ErrOvertaken].
func (l *Ledger) Reseed(ctx context.Context, lost Head, members []Member, n Note, now time.Time) (Head, error) {
	if err := l.PutNote(ctx, n); err != nil {
		return Head{}, wrap("re-seed head", err)
	}
	epoch := lost.Epoch
	for _, m := range members {
		epoch = max(epoch, m.Newest())
	}
	epoch++
	id := string(n.Pointer.Release)
	return l.writeHead(ctx, "re-seed head", Write{
		Set: Item{
			"epoch": epoch, "state": string(Done), "kind": "", "sequence": n.Sequence, "release": id, "digest": n.Digest,
			"committed_epoch": epoch, "committed_sequence": n.Sequence, "committed_release": id,
			"good": Item{"release": id, "sequence": n.Sequence}, "fence": max(lost.Fence, now.Unix()) + 1, "beat": lost.Beat + 1,
			"coordinator": "", "tries": int64(0), "cutoff": int64(0), "wave": int64(0),
		},
		Remove: append([]string{"source", "committed_source"}, ofOneEpoch...),
		If:     Or{Absent{"pk"}, And{Compare{"epoch", Eq, lost.Epoch}, Compare{"fence", Eq, lost.Fence}}},
	})
}
