package fleet_test

import (
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

// signing is a key, and what an attacker who lacks it has.
type signing struct{ ours, next, evil *release.Signer }

func newSigning(t *testing.T) signing {
	t.Helper()
	made := func() *release.Signer {
		private, _, err := release.NewKey("promo-ci")
		if err != nil {
			t.Fatal(err)
		}
		s, err := release.NewSigner(private)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return signing{made(), made(), made()}
}

func signed(t *testing.T, s *release.Signer, p release.Pointer) []byte {
	t.Helper()
	text, err := s.Sign(p)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// packed is a pointer of the packed layout, for this scope.
func packed(id string, sequence int64) release.Pointer {
	return release.Pointer{
		Release: release.ID(id), Sequence: sequence, Files: 3, Scope: scope,
		Manifest: &release.Content{SHA256: strings.Repeat("ab", 32), Length: 7},
	}
}

// member is a node without a loop, on a table of its own or of others.
func member(t *testing.T, mem *table.Memory, keys *release.Keyring) (*fleet.Node, *fleet.Ledger) {
	t.Helper()
	n := 0
	l := fleet.NewLedger(mem, scope, func() string { n++; return fmt.Sprint("t", n) })
	l.Keys = keys
	return fleet.NewNode(fleet.Options{
		Scope: scope, Instance: "i-1", Ledger: l, Journal: &fullDisk{}, Clock: bubbleClock{time.Now()}, PollInterval: time.Second,
		Random: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler), Incarnation: "x",
	}), l
}

// runs has the fleet of a table run a signed release: its note is there, and the head has committed to it.
func runs(t *testing.T, l *fleet.Ledger, text []byte) {
	t.Helper()
	note, err := fleet.NewNote(text)
	if err != nil {
		t.Fatal(err)
	}
	note.Digest = note.Pointer.Manifest.SHA256
	ctx := t.Context()
	err = l.PutNote(ctx, note)
	var h fleet.Head
	if err == nil {
		h, err = l.Open(ctx, fleet.Head{}, note, "i-0", false)
	}
	if err == nil {
		h, err = l.Decide(ctx, h, fleet.Outcome{Commit: true, Members: 1})
	}
	if err == nil {
		_, err = l.Done(ctx, h, true, "")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// F47 to F49, T1 to T3: on a member that has seen the fleet's pointer, and on one that was born a moment ago and has only read
// the head.
func TestForgedReplayedAndMixedPointersAreRefusedOnOldAndBrandNewMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		s := newSigning(t)
		keys, err := release.NewKeyring([]string{s.ours.Public(), s.next.Public()})
		if err != nil {
			t.Fatal(err)
		}
		current := signed(t, s.ours, packed("r5", now))
		staging := packed("r9", now+1)
		staging.Scope = "bucket/promo-staging"
		parent := packed("r4", now-100)
		mixed := packed("r9", now+1) // the delta of one release with the manifest of another: not what was signed
		mixedText := strings.Replace(string(signed(t, s.ours, mixed)), strings.Repeat("ab", 32), strings.Repeat("cd", 32), 1)
		smuggled := packed("r9", now+1)
		smuggled.Message = "x\"\nscope \"bucket/promo\nsequence 9"
		good := signed(t, s.next, packed("r6", now+2)) // a rotation is under way
		for _, brandNew := range []bool{false, true} {
			mem := table.NewMemory()
			n, l := member(t, mem, keys)
			runs(t, l, current)
			n.Step(t.Context())
			if !brandNew {
				if err := n.Offer(current, time.Now(), n.Newest()); err != nil {
					t.Fatal(err)
				}
			}
			for name, c := range map[string]struct{ text, says string }{
				"unsigned":                  {string(packed("r9", now+1).Text()), "is not signed, where a signature by " + s.ours.String() + " or " + s.next.String()},
				"plain and unsigned":        {fmt.Sprintf("r9\n%d\n3", now+1), "is not signed"},
				"plain and signed":          {string(signed(t, s.ours, release.Pointer{Release: "r9", Sequence: now + 1, Files: 3})), "plain layout"},
				"unknown key":               {string(signed(t, s.evil, packed("r9", now+1))), "is signed by"},
				"changed":                   {strings.Replace(string(signed(t, s.ours, packed("r9", now+1))), "r9", "r8", 1), "not that key's work"},
				"parts of two releases":     {mixedText, "not that key's work"},
				"replay of an older one":    {string(signed(t, s.ours, parent)), "older than"},
				"same sequence, other":      {string(signed(t, s.ours, packed("r9", now))), "other contents"},
				"25 hours ahead":            {string(signed(t, s.ours, packed("r9", now+25*3600))), "ahead of"},
				"fast forward to the end":   {string(signed(t, s.ours, packed("r9", math.MaxInt64))), "ahead of"},
				"staging into production":   {string(signed(t, s.ours, staging)), `is of scope "bucket/promo-staging", not of "bucket/promo"`},
				"two megabytes":             {strings.Repeat("x", 2<<20), "longer than"},
				"a message with line ends":  {strings.Replace(string(smuggled.Text()), `\n`, "\n", -1), "is not signed"},
				"nothing":                   {"", "is not signed"},
				"a page of an error server": {"<html>\n\n— x", "is no signed note"},
			} {
				err := n.Offer([]byte(c.text), time.Now(), n.Newest())
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s, brand new %v: %v, which should say %q", name, brandNew, err, c.says)
				}
				n.Step(t.Context())
				rows, err := l.Members(t.Context())
				if err != nil || len(rows) != 1 || !strings.Contains(rows[0].Error, c.says[:min(len(c.says), 60)]) {
					t.Errorf("%s: the row, which push -status shows, says %q, %v", name, rows[0].Error, err)
				}
				if h, _, _ := l.Head(t.Context(), true); h.Epoch != 1 || h.CommittedRelease != "r5" {
					t.Fatalf("%s moved the fleet: %+v", name, h)
				}
			}
			// The values of one that is signed cannot be lines of their own.
			if p, err := release.ParsePointer(signed(t, s.ours, smuggled)); err != nil || p.Sequence != now+1 || p.Message != smuggled.Message {
				t.Errorf("%+v, %v", p, err)
			}
			if err := n.Offer(good, time.Now(), n.Newest()); err != nil {
				t.Errorf("a good pointer after all these, brand new %v: %v", brandNew, err)
			}
			n.Step(t.Context())
			if rows, _ := l.Members(t.Context()); rows[0].Error != "" {
				t.Errorf("still in the row when it is over: %s", rows[0].Error)
			}
		}
	})
}

func TestABrandNewMemberThatIsShownAnotherPointerOfAKnownSequenceDoesNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigning(t)
		keys, err := release.NewKeyring([]string{s.ours.Public()})
		if err != nil {
			t.Fatal(err)
		}
		n, l := member(t, table.NewMemory(), keys)
		now := time.Now().Unix()
		known, err := fleet.NewNote(signed(t, s.ours, packed("r5", now)))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.PutNote(t.Context(), known); err != nil {
			t.Fatal(err)
		}
		n.Step(t.Context())
		if err := n.Offer(signed(t, s.ours, packed("r9", now)), time.Now(), 0); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if w, _ := n.Step(t.Context()); w.Task == fleet.Inspect {
				n.Inspected(w, strings.Repeat("ab", 32), nil)
			}
			time.Sleep(2 * time.Second)
		}
		if h, ok, _ := l.Head(t.Context(), true); ok {
			t.Errorf("an epoch was opened for it: %+v", h)
		}
		if text := n.View().Problems["pointer"]; !strings.Contains(text, fleet.ErrEquivocation.Error()) {
			t.Errorf("shown is %q", text)
		}
	})
}

// T7, T8: who can write to the table puts a note there, and a head that names it.
func TestNotesAreVerifiedLikePointers(t *testing.T) {
	s := newSigning(t)
	keys, err := release.NewKeyring([]string{s.ours.Public()})
	if err != nil {
		t.Fatal(err)
	}
	foreign := packed("r9", 9)
	foreign.Scope = "bucket/promo-staging"
	for name, c := range map[string]struct {
		text []byte
		says string
	}{
		"unsigned":         {packed("r9", 9).Text(), "is not signed, where a signature by " + s.ours.String()},
		"unknown key":      {signed(t, s.evil, packed("r9", 9)), "is signed by"},
		"plain":            {[]byte("r9\n9\n3"), "is not signed"},
		"another scope":    {signed(t, s.ours, foreign), "is of scope"},
		"another sequence": {signed(t, s.ours, packed("r9", 8)), "holds a pointer of sequence 8"},
	} {
		_, l := member(t, table.NewMemory(), keys)
		note, err := fleet.NewNote(c.text)
		if err != nil {
			t.Fatal(err)
		}
		note.Sequence, note.Digest = 9, strings.Repeat("ab", 32)
		if err := l.PutNote(t.Context(), note); err != nil {
			t.Fatal(err)
		}
		if n, err := l.Note(t.Context(), 9); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, n, err)
		}
	}
}

func TestAnEpochOnAForgedNoteGetsANoAboutTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigning(t)
		keys, err := release.NewKeyring([]string{s.ours.Public()})
		if err != nil {
			t.Fatal(err)
		}
		mem := table.NewMemory()
		n, l := member(t, mem, keys)
		forged, err := fleet.NewNote(signed(t, s.evil, packed("r9", time.Now().Unix())))
		if err != nil {
			t.Fatal(err)
		}
		forged.Digest = forged.Pointer.Manifest.SHA256
		if err := l.PutNote(t.Context(), forged); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Open(t.Context(), fleet.Head{}, forged, "i-0", false); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if w, _ := n.Step(t.Context()); w.Task != fleet.Idle {
				t.Fatalf("asked to %s a forged release", w.Task)
			}
			time.Sleep(time.Second)
		}
		rows, err := l.Members(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if v := rows[0].Vote; v.Epoch != 1 || v.Yes || v.Kind != fleet.AboutRelease || !strings.Contains(rows[0].Error, "is signed by") {
			t.Errorf("vote %+v, %q", v, rows[0].Error)
		}
	})
}

// T7: a head that names one release and the note of another.
func TestACommitWhoseNoteNamesAnotherReleaseIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := table.NewMemory()
		n, l := member(t, mem, nil)
		runs(t, l, packed("r1", time.Now().Unix()).Text())
		if _, err := l.Request(t.Context(), fleet.Head{Epoch: 1}, fleet.Item{"committed_release": "r2", "release": "r2"}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if w, _ := n.Step(t.Context()); w.Task != fleet.Idle {
				t.Fatalf("asked to %s %s", w.Task, w.Commit.Release)
			}
			time.Sleep(time.Second)
		}
		if text := n.View().Problems["release"]; !strings.Contains(text, "names release r1; the head r2") {
			t.Errorf("shown is %q", text)
		}
	})
}

// T16, F41: a coordinator whose clock is wrong, or a member's, moves a flip by no more than the flip delay.
func TestWrongClocksMoveAFlipByNoMoreThanTheFlipDelay(t *testing.T) {
	const delay = 4 * time.Second
	for skew, latest := range map[time.Duration]time.Duration{0: delay, 10 * time.Hour: delay, -10 * time.Hour: 0} {
		synctest.Test(t, func(t *testing.T) {
			mem := table.NewMemory()
			n, l := member(t, mem, nil)
			note, err := fleet.NewNote(packed("r1", time.Now().Unix()).Text())
			if err != nil {
				t.Fatal(err)
			}
			note.Digest = note.Pointer.Manifest.SHA256
			err = l.PutNote(t.Context(), note)
			var h fleet.Head
			if err == nil {
				h, err = l.Open(t.Context(), fleet.Head{}, note, "i-0", false)
			}
			if err == nil {
				_, err = l.Decide(t.Context(), h, fleet.Outcome{Commit: true, Members: 2, FlipDelay: delay, Now: time.Now().Add(skew)})
			}
			if err != nil {
				t.Fatal(err)
			}
			clock := bubbleClock{time.Now()} // the member's: no time passes in its steps
			w, _ := n.Step(t.Context())
			if w.Task == fleet.Stage {
				n.Staged(w, nil, false)
				w, _ = n.Step(t.Context())
			}
			if wait := w.At - clock.Boot(); w.Task != fleet.Flip || wait > latest {
				t.Errorf("a clock that is %v ahead: %s in %v, want a flip within %v", skew, w.Task, wait, latest)
			}
		})
	}
}

// F48: how far ahead a pointer may be goes by S3's Date, whatever the machine's own clock says.
func TestHowFarAheadAPointerIsGoesByTheDateOfS3(t *testing.T) {
	for off, ahead := range map[time.Duration]time.Duration{-48 * time.Hour: 0, 48 * time.Hour: 25 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			l := fleet.NewLedger(table.NewMemory(), scope, func() string { return "t" })
			n := fleet.NewNode(fleet.Options{
				Scope: scope, Instance: "i-1", Ledger: l, Journal: &fullDisk{}, PollInterval: time.Second,
				Clock:  &boxClock{bubbleClock: bubbleClock{time.Now()}, off: off},
				Random: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler), Incarnation: "x",
			})
			err := n.Offer(packed("r1", time.Now().Add(ahead).Unix()).Text(), time.Now(), n.Newest())
			if taken := err == nil; taken != (ahead == 0) {
				t.Errorf("a clock that is %v off, a pointer %v ahead of S3's Date: %v", off, ahead, err)
			}
		})
	}
}
