package fleet

import (
	"cmp"
	"fmt"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
)

// Tally is what a sweep says about an open epoch.
type Tally struct {
	Yes      []string // voted yes, in the quorum or welcome
	Waiting  []string // in the quorum, alive, not voted yet
	Excluded []string // not waited for: silent, unfit, leaving
	LeftOut  []string // "instance: why", for people: the excluded, and the lost, which nobody counts any more
	Silent   []Member // silent rows, lost ones included: counted as missed after the decision
	Nos      []string // "instance: reason"
	// Members is the guard's base: the quorum and those newly excluded from it. Newly counts the latter.
	Members, Newly int
	// Refused is the first no about the release.
	Refused string
	// BySilence says that members were newly excluded for silence.
	BySilence bool
	// Joining counts the living that may yet say yes without being waited for.
	Joining int
}

// Count sorts the rows of one complete sweep by the table "who counts" of the protocol.
func Count(h Head, rows []Member, silent func(Member) bool) Tally {
	var t Tally
	for _, m := range rows {
		still := silent(m)
		if still {
			t.Silent = append(t.Silent, m)
		}
		t.add(h, m, still)
	}
	return t
}

func (t *Tally) add(h Head, m Member, silent bool) {
	id := m.Instance
	if m.voted(h, false) {
		t.Nos = append(t.Nos, id+": "+m.Error)
	}
	switch {
	case m.voted(h, true):
		t.Yes = append(t.Yes, id)
		if m.Phase == Serve {
			t.Members++
		}
	case m.Lost(): // nobody asks about it any more
		t.LeftOut = append(t.LeftOut, fmt.Sprintf("%s: lost, silent through %d rollouts", id, m.Missed))
	case m.voted(h, false) && m.Vote.Kind == AboutRelease && m.Phase != Leaving:
		if t.Refused == "" {
			t.Refused = id + ": " + m.Error
		}
		t.Members++
	case m.voted(h, false), m.Phase == Out: // of the machine; one that was out before this epoch was not in the quorum
		t.exclude(id, cmp.Or(m.Error, "out of service"), m.Left == h.Epoch)
	case m.Phase == Leaving:
		t.exclude(id, "leaving", false)
	case m.Phase == Join: // neither waited for nor missed
		if !silent {
			t.Joining++
		}
	case silent:
		t.exclude(id, "silent", true)
		t.BySilence = true
	default:
		t.Waiting = append(t.Waiting, id)
		t.Members++
	}
}

// exclude leaves a member out; newly: the quorum had it.
func (t *Tally) exclude(id, why string, newly bool) {
	t.Excluded = append(t.Excluded, id)
	t.LeftOut = append(t.LeftOut, id+": "+why)
	if newly {
		t.Members++
		t.Newly++
	}
}

// Guard is the most members that an epoch may newly exclude; it always allows one.
type Guard struct{ release.Share }

// DefaultGuard is max_excluded where the pointer does not say otherwise.
const DefaultGuard = "10%"

// ParseGuard reads a pointer's max_excluded, such as "10%" or "3"; empty is the default.
func ParseGuard(s string) (Guard, error) {
	share, err := release.ParseShare(cmp.Or(s, DefaultGuard))
	return Guard{share}, wrap("max_excluded", err)
}

// Allows says whether n of members may be excluded.
func (g Guard) Allows(n, members int) bool { return n <= max(1, g.Of(members)) }

// Ruling is what follows from a tally.
type Ruling int

// What a coordinator does next.
const (
	Wait    Ruling = iota
	Go             // commit
	Refuse         // abort, for good: the release was refused
	TooMany        // abort, try again: beyond the guard, or all
)

// Rule judges a tally. A commit needs at least one yes, nobody waiting, and no more newly excluded than the guard allows.
// Without anybody who has said yes or still may, there is nothing to wait for.
func (t Tally) Rule(g Guard) Ruling {
	switch {
	case t.Refused != "":
		return Refuse
	case !g.Allows(t.Newly, t.Members) && weak.Rule != "M17":
		return TooMany
	case t.Newly > 0 && len(t.Yes)+len(t.Waiting)+t.Joining == 0:
		return TooMany // all of a small fleet, and nobody is left who could still say yes
	case len(t.Waiting) > 0 || len(t.Yes) == 0:
		return Wait
	}
	return Go
}
