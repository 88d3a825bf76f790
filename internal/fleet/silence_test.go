package fleet_test

import (
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// A coordinator whose head stood still is not called dead by its first sweeps, however late they come: it may be back.
func TestAnOldCoordinatorsRowStandsStillForHalfALeaseAtLeast(t *testing.T) {
	m := fleet.Member{Instance: "a", Incarnation: "x", Beat: 5, Phase: fleet.Serve}
	s := fleet.NewSilence("a", 0)
	began := 10 * time.Minute
	for at := began; ; at += time.Second {
		s.Observe([]fleet.Member{m}, at, at)
		if took := at - began; s.Silent(m) {
			if took < 16*time.Second || took > 18*time.Second {
				t.Errorf("silent after it stood still for %v: want what is left of its lease after a take-over", took)
			}
			return
		} else if took > time.Minute {
			t.Fatal("never silent")
		}
	}
}

// While nobody reaches the table, nobody beats. When it is back, its first answers show rows that have stood still for as long
// as it was away: that says nothing about the members.
func TestTimeWithoutAnAnswerMakesNobodySilent(t *testing.T) {
	m := fleet.Member{Instance: "i-1", Incarnation: "a", Beat: 7, Phase: fleet.Serve}
	s := fleet.NewSilence("", 0)
	now := time.Hour
	sweep := func(after time.Duration) bool {
		now += after
		s.Observe([]fleet.Member{m}, now, now)
		return s.Silent(m)
	}
	for range 8 {
		if sweep(250 * time.Millisecond) {
			t.Fatal("silent after two seconds")
		}
	}
	back := now + 10*time.Minute
	if sweep(10*time.Minute) || sweep(time.Second) {
		t.Fatal("silent because the table was away for ten minutes")
	}
	for !sweep(250 * time.Millisecond) {
		if now-back > time.Minute {
			t.Fatal("not silent for a minute after the table was back")
		}
	}
	if took := now - back; took < 15*time.Second || took > 33*time.Second {
		t.Errorf("silent %v after the table was back: want at most a lease, and no less than what is left of it", took)
	}
}
