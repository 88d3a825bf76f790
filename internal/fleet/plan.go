package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/release"
)

// Plan is how a release goes out in steps: a pointer's policy, parsed. The zero value: everywhere at once.
type Plan struct {
	Waves   []Step
	Bake    time.Duration // a wave is healthy for so long before the next
	Approve bool          // and a person has approved it
}

// Step is one wave: so many members, those of earlier waves among them, of all or of one group.
type Step struct {
	Group string // empty: of all
	Share release.Share
}

// ParsePlan reads the policy of a pointer.
func ParsePlan(p release.Policy) (Plan, error) {
	plan := Plan{Bake: p.Bake, Approve: p.Approve}
	for _, text := range p.Waves {
		group, share, named := strings.Cut(text, ":")
		if !named {
			group, share = "", text
		}
		s, err := release.ParseShare(share)
		if err != nil {
			return Plan{}, fmt.Errorf("wave %q: %w", text, err)
		}
		plan.Waves = append(plan.Waves, Step{group, s})
	}
	return plan, nil
}

// placeBits is the size of a member's place in an epoch; the bits of a cutoff above it are the number of its wave, so that the
// cutoff only ever grows although a wave may apply to another group than the one before.
const placeBits = 32

// place is where an instance stands in the order in which an epoch reaches the members: another one in each epoch.
func place(epoch int64, instance string) int64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s", epoch, instance))
	return int64(binary.BigEndian.Uint32(sum[:]))
}

// Reaches says whether the wave that the head is at takes an instance of a group along, if that has voted yes.
func (h Head) Reaches(instance, group string) bool {
	return h.State == Wave && (h.WaveGroup == "" || h.WaveGroup == group) && place(h.Epoch, instance) <= h.Cutoff&(1<<placeBits-1)
}

// took says whether a member is on the epoch's release before its commit, or tried to be.
func (m Member) took(h Head) bool {
	return h.Reaches(m.Instance, m.Group) || m.Active.Epoch == h.Epoch || m.Failed == h.Epoch
}

// aim finds the next wave, from the given one on (the first is 1), that takes somebody of the crew further: of those who can take
// part. The head it returns is h with that wave. commit says that such a wave would leave nobody out, or that there is none: the last
// wave is the commit. A wave of a group without members never passes, and is an error.
func (p Plan) aim(h Head, from int, crew []Member) (next Head, commit bool, err error) {
	for i := from; i <= len(p.Waves); i++ {
		w := p.Waves[i-1]
		var places []int64
		for _, m := range crew {
			if w.Group == "" || m.Group == w.Group {
				places = append(places, place(h.Epoch, m.Instance))
			}
		}
		if len(places) == 0 {
			return h, false, fmt.Errorf("wave %d of %d is for group %q, of which no instance takes part", i, len(p.Waves), w.Group)
		}
		slices.Sort(places)
		next = h
		next.State, next.Wave, next.WaveGroup = Wave, int64(i), w.Group
		next.Cutoff = int64(i)<<placeBits | places[max(1, w.Share.Of(len(places)))-1]
		fresh, left := 0, 0
		for _, m := range crew {
			switch {
			case m.took(h):
			case next.Reaches(m.Instance, m.Group):
				fresh++
			default:
				left++
			}
		}
		switch {
		case left == 0:
			return h, true, nil
		case fresh > 0:
			return next, false, nil
		}
	}
	return h, true, nil
}

// Assign says in which wave each member of an open epoch is or will be, the first being 1, as far as can be told now; 0 for those who do
// not take part. Those that no wave names come last, with the commit.
func (p Plan) Assign(h Head, rows []Member) map[string]int {
	waves := map[string]int{}
	var crew []Member
	for _, m := range rows {
		if m.Phase == Serve && !m.Lost() {
			m.Active, m.Failed = Active{}, 0 // as it was planned, whoever has flipped by now
			crew = append(crew, m)
		}
	}
	at := h
	at.State, at.Cutoff, at.Wave = Prepare, 0, 0
	for {
		next, commit, err := p.aim(at, int(at.Wave)+1, crew)
		if err != nil || commit {
			break
		}
		for _, m := range crew {
			if _, known := waves[m.Instance]; !known && next.Reaches(m.Instance, m.Group) {
				waves[m.Instance] = int(next.Wave)
			}
		}
		at = next
	}
	for _, m := range crew {
		if _, known := waves[m.Instance]; !known {
			waves[m.Instance] = int(at.Wave) + 1
		}
	}
	return waves
}
