package push

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

func TestJudgeKnowsEachEnd(t *testing.T) {
	const ours = 100
	committed := fleet.Head{CommittedEpoch: 3, CommittedSequence: ours}
	cases := map[string]struct {
		s    sight
		want Outcome
	}{
		"no head yet":                {sight{}, ""},
		"an older epoch":             {sight{hasHead: true, head: fleet.Head{Sequence: 90, State: fleet.Done}}, ""},
		"preparing":                  {sight{hasHead: true, head: fleet.Head{Sequence: ours, State: fleet.Prepare}}, ""},
		"committed, not over":        {sight{hasHead: true, committed: true, head: fleet.Head{Sequence: ours, State: fleet.Commit}}, ""},
		"done":                       {sight{hasHead: true, head: fleet.Head{Sequence: ours, State: fleet.Done}}, Done},
		"held":                       {sight{hasHead: true, head: fleet.Head{Sequence: ours, State: fleet.Abort, Hold: ours}}, Aborted},
		"a newer one is held":        {sight{hasHead: true, pointer: 101, head: fleet.Head{Sequence: ours, State: fleet.Abort, Hold: 101}}, Aborted},
		"to be tried at once":        {sight{hasHead: true, head: fleet.Head{Sequence: ours, State: fleet.Abort, Hold: ours, Again: ours}}, ""},
		"to be tried again":          {sight{hasHead: true, head: fleet.Head{Sequence: ours, State: fleet.Abort, RetryAt: 5}}, ""},
		"aborted for a newer push":   {sight{hasHead: true, head: fleet.Head{Sequence: ours, State: fleet.Abort}}, Superseded},
		"tried again, but overtaken": {sight{hasHead: true, pointer: 101, head: fleet.Head{Sequence: ours, State: fleet.Abort, RetryAt: 5}}, Superseded},
		"preparing, newer pointer":   {sight{hasHead: true, pointer: 101, head: fleet.Head{Sequence: ours, State: fleet.Prepare}}, ""},
		"never opened, overtaken":    {sight{pointer: 101}, Superseded},
		"the next epoch is open":     {sight{hasHead: true, head: fleet.Head{Sequence: 101, State: fleet.Prepare, CommittedSequence: 90}}, Superseded},
		"live, and the next is open": {sight{hasHead: true, pointer: 101, head: func() fleet.Head { h := committed; h.Sequence, h.State = 101, fleet.Prepare; return h }()}, Done},
		"live, and already replaced": {sight{hasHead: true, committed: true, head: fleet.Head{Sequence: 101, State: fleet.Done, CommittedSequence: 101}}, Done},
		"going back":                 {sight{hasHead: true, head: fleet.Head{Sequence: ours, Source: 90, Kind: fleet.KindRollback, State: fleet.Commit, Bad: []int64{ours}}}, ""},
		"going back, to be retried":  {sight{hasHead: true, head: fleet.Head{Sequence: ours, Source: 90, State: fleet.Abort, RetryAt: 5, Bad: []int64{ours}}}, ""},
		"going back, newer is held":  {sight{hasHead: true, pointer: 101, head: fleet.Head{Sequence: ours, Source: 90, State: fleet.Abort, RetryAt: 5, Hold: 101, Bad: []int64{ours}}}, ""},
		"went back too often":        {sight{hasHead: true, pointer: 101, head: fleet.Head{Sequence: ours, Source: 90, State: fleet.Abort, Hold: 101, Bad: []int64{ours}}}, Aborted},
		"could not go back":          {sight{hasHead: true, head: fleet.Head{Sequence: ours, Source: 90, State: fleet.Abort, Hold: ours, Bad: []int64{ours}}}, Aborted},
		"went back":                  {sight{hasHead: true, committed: true, head: fleet.Head{Sequence: ours, Source: 90, State: fleet.Done, Bad: []int64{ours}}}, RolledBack},
		"rolled back":                {sight{hasHead: true, committed: true, head: fleet.Head{Sequence: 90, Kind: fleet.KindRollback, State: fleet.Done, Bad: []int64{ours}}}, RolledBack},
	}
	for name, c := range cases {
		if got, _ := judge(ours, c.s); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// stand is a stand-in for an agent: a real node whose machine does everything at once, or says no.
type stand struct {
	id     string
	node   *fleet.Node
	ledger *fleet.Ledger
	no     error // of every release
	once   error // of its fleet_once hook; nil: it has none
	slow   time.Duration
}

// boot is a clock inside a synctest bubble, where time begins with the year 2000.
type boot struct{}

func (boot) Boot() time.Duration {
	return time.Since(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC))
}
func (boot) Now() time.Time { return time.Now() }

type noJournal struct{}

func (noJournal) Save(fleet.State) error { return nil }

func ledgerOf(t *table.Memory, who string) *fleet.Ledger {
	n := 0
	return fleet.NewLedger(t, "b/shop", func() string { n++; return fmt.Sprint(who, n) })
}

// live steps the node until ctx ends.
func (s *stand) live(ctx context.Context, text func() []byte) {
	var staging time.Time
	for ctx.Err() == nil {
		if p := text(); p != nil {
			_ = s.node.Offer(p, time.Now(), 0)
		}
		w, _ := s.node.Step(ctx)
		switch w.Task {
		case fleet.Inspect:
			s.node.Inspected(w, "digest", nil)
		case fleet.Stage:
			if staging.IsZero() {
				staging = time.Now()
			}
			if time.Since(staging) >= s.slow {
				s.node.Staged(w, s.no, false)
			}
		case fleet.Flip:
			if (boot{}).Boot() >= w.At {
				s.node.FlipDone(w, time.Now(), nil)
			}
		case fleet.Settle:
			s.node.SettledDone(w, nil)
		case fleet.Once:
			o := fleet.Output{Instance: s.id, Hook: "fleet_once", Release: w.Commit.Release, Text: "adding a column\nno such table\n"}
			_ = s.ledger.PutOutput(ctx, o, time.Now())
			s.node.OnceDone(w, s.once)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// rollOutWith runs a fleet of machines that say no, or nil, on one pointer, and follows it.
func rollOutWith(t *testing.T, timeout time.Duration, nos ...error) (*Result, string) {
	t.Helper()
	var stands []*stand
	for i, no := range nos {
		stands = append(stands, &stand{no: no, slow: time.Duration(i) * 3 * time.Second})
	}
	return rollOutOn(t, timeout, stands...)
}

// rollOutOn runs a fleet of the given machines on one pointer, and follows it.
func rollOutOn(t *testing.T, timeout time.Duration, stands ...*stand) (*Result, string) {
	t.Helper()
	r := &Result{began: time.Now()}
	var story strings.Builder
	mem := table.NewMemory()
	ctx, cancel := context.WithCancel(t.Context())
	defer synctest.Wait()
	defer cancel()
	sequence := time.Now().Unix()
	text := release.Pointer{Release: release.NewID(time.Now()), Sequence: sequence, Files: 1}.Text()
	joined := time.Now()
	for i, s := range stands {
		s.id = fmt.Sprintf("i-%d", i)
		s.ledger = ledgerOf(mem, s.id)
		s.node = fleet.NewNode(fleet.Options{
			Scope: "b/shop", Instance: s.id, Incarnation: s.id, Ledger: s.ledger, Journal: noJournal{}, Once: s.once != nil,
			Clock: boot{}, Random: func() float64 { return 0 }, PollInterval: time.Second, PrepareTimeout: 10 * time.Minute,
			Log: slog.New(slog.DiscardHandler),
		})
		go s.live(ctx, func() []byte {
			if time.Since(joined) < 5*time.Second { // all are in service first
				return nil
			}
			return text
		})
	}
	w := &watcher{
		ledger: ledgerOf(mem, "push"), pointer: func(context.Context) int64 { return sequence }, sequence: sequence, began: r.began,
		board: &board{out: &story},
	}
	w.follow(ctx, timeout, r)
	return r, story.String()
}

func TestFollowTellsOfAReleaseUntilItIsLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, story := rollOutWith(t, time.Hour, nil, nil, nil)
		if r.Outcome != Done || r.Members != 3 || r.Excluded != 0 || r.unhealthy {
			t.Errorf("result %+v", r)
		}
		if r.LiveMS < 5000 || r.LiveMS > 60_000 || r.FlipSpreadMS < 0 || r.FlipSpreadMS > 1000 {
			t.Errorf("live after %d ms, spread %d ms", r.LiveMS, r.FlipSpreadMS)
		}
		for _, want := range []string{"epoch 1 opened by i-", "i-0 is ready\ni-1 is ready\n", "committed, flipping\n", "i-0 is live and healthy\n", "i-2 is live and healthy\n"} {
			if !strings.Contains(story, want) {
				t.Errorf("the story lacks %q:\n%s", want, story)
			}
		}
	})
}

func TestFollowEndsWithTheReasonOfARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, story := rollOutWith(t, time.Hour, nil, errors.New("hook after_sync: exit 1"))
		if r.Outcome != Aborted || !strings.Contains(r.Reason, "hook after_sync: exit 1") {
			t.Errorf("result %+v", r)
		}
		if exitCode(r.err()) != exitAborted {
			t.Errorf("exit code %d", exitCode(r.err()))
		}
		if !strings.Contains(story, "i-1 says no: hook after_sync") {
			t.Errorf("the story does not name the no:\n%s", story)
		}
	})
}

func TestFollowShowsWhatAFailedFleetOncePrinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const why = "hook fleet_once: exit code 1: no such table"
		r, story := rollOutOn(t, time.Hour, &stand{}, &stand{once: errors.New(why)}, &stand{})
		if r.Outcome != Aborted || !strings.Contains(r.Reason, "i-1: "+why) {
			t.Errorf("result %+v", r)
		}
		if want := "i-1 failed: " + why + "\n  | adding a column\n  | no such table\n"; strings.Count(story, want) != 1 {
			t.Errorf("the story lacks %q:\n%s", want, story)
		}
	})
}

func TestFollowTimesOutWhereNobodyOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r, _ := rollOutWith(t, time.Minute)
		if r.Outcome != TimedOut || exitCode(r.err()) != exitTimeout || !strings.Contains(r.Reason, "no agent has opened") {
			t.Errorf("result %+v", r)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("took %v", took)
		}
	})
}

// A release that fails everywhere is left at once: the rows may say nothing of it any more when push looks for the first time.
func TestFollowTellsWhoFailedAfterTheFleetHasGoneBack(t *testing.T) {
	const back = "2 of 4 failed after the flip: i-1: hook after_flip: exit code 7: no such table, i-2: hook after_flip: exit code 7: no such table"
	const no = "hook after_flip: exit code 7: no such table"
	story, l := strings.Builder{}, ledgerOf(table.NewMemory(), "push")
	w := &watcher{
		ledger: l, sequence: 100, release: "new", board: &board{out: &story},
		told: map[string]bool{}, printed: map[string]*fleet.Output{},
	}
	look := func(h fleet.Head, rows ...fleet.Member) string {
		t.Helper()
		for _, m := range rows {
			m.Incarnation, m.Phase, m.Beat = fmt.Sprint(m.Instance, h.Epoch), fleet.Serve, 1
			if err := l.Register(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		story.Reset()
		w.seen = sight{hasHead: true, head: h}
		if err := w.readMembers(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.tell(nil)
		return story.String()
	}
	for instance, o := range map[string]fleet.Output{"i-1": {Release: "new"}, "i-2": {Release: "new"}, "i-3": {Release: "older"}} {
		o.Instance, o.Hook, o.Text = instance, "after_flip", "looking at the schema\nno table for "+instance+"\n"
		if err := l.PutOutput(t.Context(), o, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	voted := fleet.Vote{Epoch: 6, Release: "old", Yes: true}
	head := fleet.Head{Epoch: 6, State: fleet.Commit, Kind: fleet.KindRollback, Sequence: 100, Source: 90, Release: "old", Bad: []int64{100}, Why: back}
	said := look(head,
		fleet.Member{Instance: "i-0", Failed: 5, Error: no},                                        // as it was
		fleet.Member{Instance: "i-1", Failed: 5, Vote: voted},                                      // it is ready to go back
		fleet.Member{Instance: "i-2", Vote: voted, Active: fleet.Active{Epoch: 6, Release: "old"}}, // it is back
		fleet.Member{Instance: "i-3", Vote: voted},                                                 // it failed another time
	)
	for _, want := range []string{
		"i-0 is not well: " + no + "\n",
		"i-1 is not well: hook after_flip failed\n  | looking at the schema\n  | no table for i-1\n",
		"i-2 is not well: hook after_flip failed\n  | looking at the schema\n  | no table for i-2\n",
	} {
		if before, _, ok := strings.Cut(said, want); !ok || strings.Contains(before, back) {
			t.Errorf("it does not say %q before why it goes back:\n%s", want, said)
		}
	}
	if strings.Contains(said, "i-3 is not well") {
		t.Errorf("it blames i-3:\n%s", said)
	}
	head.Epoch, head.State = 7, fleet.Prepare // the way back was tried again
	if said := look(head); !strings.Contains(said, "epoch 7 opened") || strings.Contains(said, "  | ") {
		t.Errorf("it shows what was printed again:\n%s", said)
	}
}

// What was told while the release was live is not told again on the way back.
func TestFollowTellsOnceWhoFailed(t *testing.T) {
	story, l := strings.Builder{}, ledgerOf(table.NewMemory(), "push")
	w := &watcher{
		ledger: l, sequence: 100, release: "new", board: &board{out: &story},
		told: map[string]bool{}, printed: map[string]*fleet.Output{},
	}
	const no = "hook after_flip: exit code 7: no such table"
	err := errors.Join(
		l.Register(t.Context(), fleet.Member{Instance: "i-0", Incarnation: "x", Beat: 1, Phase: fleet.Serve, Failed: 5, Error: no}),
		l.PutOutput(t.Context(), fleet.Output{Instance: "i-0", Hook: "after_flip", Release: "new", Text: "no such table\n"}, time.Now()),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []fleet.Head{
		{Epoch: 5, State: fleet.Commit, Sequence: 100, Release: "new"},
		{Epoch: 6, State: fleet.Prepare, Kind: fleet.KindRollback, Sequence: 100, Source: 90, Release: "old", Bad: []int64{100}, Why: "1 of 1 failed after the flip: i-0: " + no},
	} {
		w.seen = sight{hasHead: true, head: h}
		if err := w.readMembers(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.tell(nil)
	}
	if said := story.String(); strings.Count(said, "i-0 is not well") != 1 || strings.Count(said, "  | ") != 1 || !strings.Contains(said, "rolling back to old") {
		t.Errorf("it says\n%s", said)
	}
}

// A commit may be over when push looks for the first time; it is told once, however many states of it are seen.
func TestFollowTellsOfTheCommitOnce(t *testing.T) {
	for _, seen := range [][]fleet.EpochState{{fleet.Done}, {fleet.Prepare, fleet.Done}, {fleet.Prepare, fleet.Commit, fleet.Done}, {fleet.Commit, fleet.Commit}} {
		story := strings.Builder{}
		w := &watcher{sequence: 100, release: "new", board: &board{out: &story}, told: map[string]bool{}, printed: map[string]*fleet.Output{}}
		for _, state := range seen {
			w.seen = sight{hasHead: true, head: fleet.Head{Epoch: 5, State: state, Sequence: 100, Release: "new", Coordinator: "i-0"}}
			w.tell(nil)
		}
		if said := story.String(); said != "epoch 5 opened by i-0\ncommitted, flipping\n" {
			t.Errorf("of %v it tells\n%s", seen, said)
		}
	}
}
