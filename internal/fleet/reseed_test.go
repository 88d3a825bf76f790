package fleet_test

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

func TestMostActiveIsWhatMostMembersServe(t *testing.T) {
	serves := func(id string, epoch int64) fleet.Member {
		return fleet.Member{Active: fleet.Active{Release: release.ID(id), Epoch: epoch}}
	}
	cases := []struct {
		members []fleet.Member
		want    release.ID
	}{
		{nil, ""},
		{[]fleet.Member{{}, serves("aa", 1)}, "aa"},
		{[]fleet.Member{serves("aa", 1), serves("bb", 2), serves("aa", 1)}, "aa"},
		{[]fleet.Member{serves("bb", 1), serves("aa", 2)}, "aa"},
	}
	for _, c := range cases {
		if got := fleet.MostActive(c.members); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestReseedGoesOnAfterTheHighestEpochThatMembersReport(t *testing.T) {
	n := 0
	l := fleet.NewLedger(table.NewMemory(), "b/shop", func() string { n++; return strconv.Itoa(n) })
	note, err := fleet.NewNote([]byte("aa\n100\n1"))
	if err != nil {
		t.Fatal(err)
	}
	note.Digest = "d"
	members := []fleet.Member{
		{Instance: "i-1", Active: fleet.Active{Epoch: 7, Release: "aa"}},
		{Instance: "i-2", Active: fleet.Active{Epoch: 7, Release: "aa"}, Vote: fleet.Vote{Epoch: 8, Release: "bb"}},
	}
	h, err := l.Reseed(t.Context(), fleet.Head{}, members, note, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if h.Epoch != 9 || h.State != fleet.Done || h.Committed() != (fleet.Commitment{Epoch: 9, Release: "aa", Sequence: 100}) {
		t.Errorf("head %+v", h)
	}
	if had, err := l.Note(t.Context(), 100); err != nil || had == nil || had.Digest != "d" {
		t.Errorf("note %+v, %v", had, err)
	}
	if stale := (fleet.Head{Epoch: 9, State: fleet.Done, Fence: 30, Beat: 500}); h.Older(stale) {
		t.Error("an agent that still runs would ignore the new head")
	}
	if _, err := l.Reseed(t.Context(), fleet.Head{}, members, note, time.Unix(1001, 0)); !errors.Is(err, fleet.ErrOvertaken) {
		t.Errorf("a second one: %v", err)
	}
}

// What a person held while the table was backed up must not go live by its loss.
func TestReseedKeepsWhatARestoredHeadHoldsAndFreezes(t *testing.T) {
	n := 0
	l := fleet.NewLedger(table.NewMemory(), "b/shop", func() string { n++; return strconv.Itoa(n) })
	note, err := fleet.NewNote([]byte("aa\n100\n1"))
	if err != nil {
		t.Fatal(err)
	}
	restored, err := l.Open(t.Context(), fleet.Head{}, note, "i-1", false)
	if err == nil {
		restored, err = l.Hold(t.Context(), restored, 200)
	}
	if err == nil {
		restored, err = l.Request(t.Context(), restored, fleet.Item{"again": int64(100)})
	}
	if err == nil {
		restored, err = l.Freeze(t.Context(), restored, fleet.Freeze{By: "me", Why: "sale"})
	}
	if err != nil {
		t.Fatal(err)
	}
	members := []fleet.Member{{Instance: "i-1", Active: fleet.Active{Epoch: 7, Release: "aa"}}}
	h, err := l.Reseed(t.Context(), restored, members, note, time.Unix(1000, 0))
	if err != nil || h.Epoch != 8 || !h.Held(200) || h.Held(201) || h.Frozen == nil || h.Again != 0 {
		t.Errorf("head %+v, %v", h, err)
	}
}

func TestReseedInAWaveTakesBackThoseWhomItHadReached(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(5)...)
		first := r.push("r1")
		r.live("r1", time.Minute, ids(5)...)
		second := r.push("r2", `waves "1"`, `approve "true"`)
		r.waved("r2", 1, time.Minute)
		r.loseHead()
		l := fleet.NewLedger(r.mem, scope, r.token)
		rows, err := l.Members(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		note, err := fleet.NewNote([]byte("r1\n" + itoa(first) + "\n3"))
		if err != nil {
			t.Fatal(err)
		}
		note.Digest = "digest-r1"
		h, err := l.Reseed(t.Context(), fleet.Head{}, rows, note, time.Now())
		if err == nil {
			_, err = l.Hold(t.Context(), h, second) // nobody opens it anew
		}
		if err != nil {
			t.Fatal(err)
		}
		r.live("r1", time.Minute, ids(5)...)
		if on := r.on("r2"); len(on) > 0 {
			t.Errorf("the head says %s, and on r2 are %v", r.head().CommittedRelease, on)
		}
	})
}
