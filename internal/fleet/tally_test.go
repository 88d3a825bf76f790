package fleet_test

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestWhoCounts(t *testing.T) {
	head := fleet.Head{Epoch: 7, State: fleet.Prepare, Release: "r7", Digest: "d"}
	yes := fleet.Vote{Epoch: 7, Release: "r7", Yes: true}
	old := fleet.Vote{Epoch: 6, Release: "r6", Yes: true}
	other := fleet.Vote{Epoch: 7, Release: "rX", Yes: true}
	no := func(kind string) fleet.Vote { return fleet.Vote{Epoch: 7, Release: "r7", Kind: kind} }
	row := func(id string, p fleet.Phase, v fleet.Vote) fleet.Member {
		return fleet.Member{Instance: id, Phase: p, Vote: v, Beat: 1}
	}
	left := func(m fleet.Member) fleet.Member { m.Left = 7; return m }
	lost := row("lost", fleet.Serve, old)
	lost.Missed = 4
	for name, c := range map[string]struct {
		rows   []fleet.Member
		silent string
		want   fleet.Ruling
	}{
		"all yes":                        {[]fleet.Member{row("a", fleet.Serve, yes), row("b", fleet.Serve, yes)}, "", fleet.Go},
		"one has not voted":              {[]fleet.Member{row("a", fleet.Serve, yes), row("b", fleet.Serve, old)}, "", fleet.Wait},
		"a vote of another epoch":        {[]fleet.Member{row("a", fleet.Serve, old)}, "", fleet.Wait},
		"a vote for another release":     {[]fleet.Member{row("a", fleet.Serve, other)}, "", fleet.Wait},
		"a joiner is not waited for":     {[]fleet.Member{row("a", fleet.Serve, yes), row("j", fleet.Join, old)}, "", fleet.Go},
		"a joiner's yes is welcome":      {[]fleet.Member{row("j", fleet.Join, yes)}, "", fleet.Go},
		"nobody said yes":                {[]fleet.Member{row("j", fleet.Join, old)}, "", fleet.Wait},
		"an empty fleet":                 {nil, "", fleet.Wait},
		"leaving is not waited for":      {[]fleet.Member{row("a", fleet.Serve, yes), row("l", fleet.Leaving, old)}, "", fleet.Go},
		"one silent is within the guard": {[]fleet.Member{row("a", fleet.Serve, yes), row("s", fleet.Serve, old)}, "s", fleet.Go},
		"yes, then silent, is a yes":     {[]fleet.Member{row("s", fleet.Serve, yes)}, "s", fleet.Go},
		"a lost one is outside":          {[]fleet.Member{row("a", fleet.Serve, yes), row("s", fleet.Serve, old), lost}, "s", fleet.Go},
		"no about the release":           {[]fleet.Member{row("a", fleet.Serve, yes), row("n", fleet.Serve, no(fleet.AboutRelease))}, "", fleet.Refuse},
		"no about the machine":           {[]fleet.Member{row("a", fleet.Serve, yes), left(row("n", fleet.Out, no(fleet.AboutMachine)))}, "", fleet.Go},
		"two unfit are too many": {[]fleet.Member{
			row("a", fleet.Serve, yes), left(row("n", fleet.Out, no(fleet.AboutMachine))), left(row("m", fleet.Out, no(fleet.AboutMachine))),
		}, "", fleet.TooMany},
		"unfit joiners are outside the guard": {[]fleet.Member{
			row("a", fleet.Serve, yes), row("n", fleet.Out, no(fleet.AboutMachine)), row("m", fleet.Out, no(fleet.AboutMachine)),
		}, "", fleet.Go},
		"a joiner's no about the release counts": {[]fleet.Member{row("a", fleet.Serve, yes), row("j", fleet.Join, no(fleet.AboutRelease))}, "", fleet.Refuse},
		"the only one is unfit":                  {[]fleet.Member{left(row("n", fleet.Out, no(fleet.AboutMachine)))}, "", fleet.TooMany},
		"unfit, and a joiner may help":           {[]fleet.Member{row("n", fleet.Out, no(fleet.AboutMachine)), row("j", fleet.Join, old)}, "", fleet.Wait},
		"silent, and a joiner may help":          {[]fleet.Member{row("s", fleet.Serve, old), row("j", fleet.Join, old)}, "s", fleet.Wait},
		"out since before is outside the guard": {[]fleet.Member{
			row("a", fleet.Serve, yes), row("o", fleet.Out, old), row("p", fleet.Out, old),
		}, "", fleet.Go},
	} {
		guard, err := fleet.ParseGuard("")
		if err != nil {
			t.Fatal(err)
		}
		silent := func(m fleet.Member) bool { return m.Instance == c.silent || m.Missed > 0 }
		if got := fleet.Count(head, c.rows, silent).Rule(guard); got != c.want {
			t.Errorf("%s: ruling %d, want %d", name, got, c.want)
		}
	}
}

func TestWhoWasLeftOutIsToldByWhoFinishesTheEpoch(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(4)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(4)...)
		r.all["i-03"].kill()
		r.push("r2")
		r.until("committed", 2*time.Minute, func() bool { return r.head().State == fleet.Commit && r.rows()["i-03"].Missed == 1 })
		r.all[r.head().Coordinator].kill()
		r.until("done by another", 2*time.Minute, func() bool { return r.head().State == fleet.Done })
		r.leftOut(2, "i-03: silent")
	})
}

// leftOut looks at whom the log of an epoch names as not waited for, and why.
func (r *rig) leftOut(epoch int64, want ...string) {
	r.t.Helper()
	logs, err := fleet.NewLedger(r.mem, scope, r.token).Logs(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(logs, func(l fleet.Log) bool { return l.Epoch == epoch })
	if i < 0 || !slices.Equal(logs[i].Excluded, want) {
		r.t.Errorf("of %+v, epoch %d is to leave out %q", logs, epoch, want)
	}
}

func TestGuard(t *testing.T) {
	for _, c := range []struct {
		text       string
		n, members int
		want       bool
	}{
		{"", 1, 2, true},
		{"", 2, 10, false},
		{"", 2, 20, true},
		{"", 3, 29, false},
		{"40%", 4, 10, true},
		{"40%", 5, 10, false},
		{"0%", 1, 3, true},
		{"3", 3, 100, true},
		{"3", 4, 100, false},
	} {
		g, err := fleet.ParseGuard(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.Allows(c.n, c.members); got != c.want {
			t.Errorf("guard %q allows %d of %d: %v", c.text, c.n, c.members, got)
		}
	}
	for _, bad := range []string{"-1", "101%", "x", "NaN%", "10 %"} {
		if _, err := fleet.ParseGuard(bad); err == nil {
			t.Errorf("guard %q was accepted", bad)
		}
	}
}

func TestSilenceTakesFourSweepsAndElevenTenthsOfALease(t *testing.T) {
	m := fleet.Member{Instance: "a", Incarnation: "x", Beat: 5}
	sweep := func(s *fleet.Silence, at time.Duration, m fleet.Member) bool {
		s.Observe([]fleet.Member{m}, at, at+time.Millisecond)
		return s.Silent(m)
	}
	s := fleet.NewSilence("", 0)
	for at := time.Duration(0); at <= 33*time.Second; at += time.Second {
		if sweep(s, at, m) {
			t.Fatalf("silent after %v", at)
		}
	}
	if !sweep(s, 34*time.Second, m) {
		t.Error("not silent after 34 s")
	}
	m.Beat++
	if sweep(s, 35*time.Second, m) {
		t.Error("silent with a new beat")
	}
	s = fleet.NewSilence("", 0)
	sweep(s, 0, m)
	sweep(s, 50*time.Second, m)
	if sweep(s, 60*time.Second, m) {
		t.Error("silent after three sweeps: a stalled observer accuses the living")
	}
	s = fleet.NewSilence("a", 0) // took over from a, whose head beat stood still since 0
	for _, at := range []time.Duration{17, 20, 30} {
		sweep(s, at*time.Second, m)
	}
	if !sweep(s, 34*time.Second, m) {
		t.Error("a dead coordinator's lease runs from its last head beat")
	}
	m.Missed = 1
	if !fleet.NewSilence("", 0).Silent(m) {
		t.Error("a row that was counted as missed and stands still is silent")
	}
}
