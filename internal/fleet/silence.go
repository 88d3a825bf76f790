package fleet

import "time"

// Silence judges which members are silent, on the observer's own boot clock: a row that stands still
// over four complete sweeps and 1.1 leases. It is made fresh for each epoch one coordinates: members beat slowly
// between epochs, so an older sighting would accuse the living.
type Silence struct {
	seen map[string]sighting
	// coordinator stood still on the head since headSince: its own lease runs from there, but for no more than a take-over waits. When
	// the head stood still longer unseen, or the first sweep came late, it may have been started again and beat ever since.
	coordinator string
	headSince   time.Duration
	swept       time.Duration // end of the last sweep; 0: none yet
}

// mostGap is how much of the time between two sweeps counts: the slowest pace of sweeps, H of 10,000 members, twice. While the
// table does not answer the observer nobody can beat either, and the first sweep afterwards would find everybody silent.
const mostGap = 10 * time.Second

type sighting struct {
	incarnation string
	beat        int64
	since, last time.Duration
	sweeps      int
}

// NewSilence starts observing. coordinator (or "") is the one whose head beat has stood still since the given boot time.
func NewSilence(coordinator string, since time.Duration) *Silence {
	return &Silence{seen: map[string]sighting{}, coordinator: coordinator, headSince: since}
}

// Observe takes a clean, complete, strongly consistent sweep that began and ended at these boot times.
func (s *Silence) Observe(rows []Member, began, ended time.Duration) {
	if blind := began - s.swept - mostGap; s.swept > 0 && blind > 0 {
		for id, was := range s.seen {
			was.since += blind
			s.seen[id] = was
		}
	}
	s.swept = ended
	for _, m := range rows {
		was, ok := s.seen[m.Instance]
		if !ok || was.incarnation != m.Incarnation || was.beat != m.Beat {
			since := ended
			if !ok && m.Instance == s.coordinator {
				since = min(since, max(s.headSince, ended-takeOverAfter))
			}
			s.seen[m.Instance] = sighting{m.Incarnation, m.Beat, since, began, 1}
			continue
		}
		was.last = began
		was.sweeps++
		s.seen[m.Instance] = was
	}
}

// Silent says whether a row of the last sweep belongs to a silent member. A row that another coordinator counted as missed is
// silent as it stands, since any beat of the member clears the count.
func (s *Silence) Silent(m Member) bool {
	if m.Missed > 0 {
		return true
	}
	was := s.seen[m.Instance]
	return was.sweeps >= silentSweeps && was.last-was.since >= silentSpan
}
