package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
)

// Status is what -status -json prints; its form is stable. Parts that could not be read are null, and named in Problems.
type Status struct {
	Site      string         `json:"site"`
	Line      string         `json:"line"` // what is stuck and why, or that all is well
	Pointer   *statusTarget  `json:"pointer"`
	Head      *statusHead    `json:"head"`
	Committed *statusTarget  `json:"committed"`
	Freeze    *statusFreeze  `json:"freeze"`
	Members   []statusMember `json:"members"`
	Problems  []string       `json:"problems"`
	Hint      string         `json:"hint"` // what a person can do about it, whose text the table cuts; or ""
}

type statusTarget struct {
	Release  release.ID `json:"release"`
	Sequence int64      `json:"sequence"`
}

type statusHead struct {
	Epoch       int64            `json:"epoch"`
	State       fleet.EpochState `json:"state"`
	Release     release.ID       `json:"release"`
	Sequence    int64            `json:"sequence"`
	Coordinator string           `json:"coordinator"`
	Kind        string           `json:"kind"`
	Reason      string           `json:"reason"`
	Wave        int64            `json:"wave"`  // the one under way, from 1; 0: none
	Waits       string           `json:"waits"` // what the coordinator waits for besides the instances
}

type statusFreeze struct {
	By    string `json:"by"`
	Why   string `json:"why"`
	Until int64  `json:"until"` // Unix seconds; 0: until it is lifted
}

type statusMember struct {
	Instance string      `json:"instance"`
	Group    string      `json:"group"`
	Zone     string      `json:"zone"`
	Phase    fleet.Phase `json:"phase"`
	Release  release.ID  `json:"release"` // what it serves
	Vote     string      `json:"vote"`    // "yes", "no" or "" in the head's epoch
	Reason   string      `json:"reason"`
	Progress string      `json:"progress"`
	SeenS    int64       `json:"seen_s"` // seconds since its last beat, by the two clocks
	Version  string      `json:"version"`
	Wave     int         `json:"wave"` // of the open rollout, as far as can be told now; 0: none, or it takes no part
}

// status prints the state of the site. It writes nothing, and says what it could not read.
func (s *session) status(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	if s.watch {
		return s.watchStatus(ctx, site)
	}
	v := site.look(ctx)
	st := v.status(s.cfg.Site)
	if s.json {
		err = s.object(st)
	} else {
		st.print(s.console, site.line(v))
	}
	if lost := v.err(); err == nil && lost != nil {
		// Line and problems have said what it is.
		err = errors.New("status: not everything could be read")
		if h := hint(lost); h != "" {
			err = advise(err, h)
		}
	}
	return err
}

func (v view) status(name string) Status {
	st := Status{Site: name, Problems: []string{}, Line: v.summary()}
	if v.MembersErr == nil {
		st.Members = []statusMember{}
	}
	if v.Pointer.Release != "" {
		st.Pointer = &statusTarget{v.Pointer.Release, v.Pointer.Sequence}
	}
	if h := v.Head; v.HasHead {
		st.Head = &statusHead{h.Epoch, h.State, h.Release, h.Sequence, h.Coordinator, h.Kind, h.Reason, h.Wave, h.Waits}
		if h.CommittedEpoch > 0 {
			st.Committed = &statusTarget{h.CommittedRelease, h.CommittedSequence}
		}
		st.Freeze = freezeOf(h)
	}
	waves := v.waves()
	for _, m := range v.Members {
		row := v.member(m)
		row.Wave = waves[m.Instance]
		st.Members = append(st.Members, row)
	}
	slices.SortFunc(st.Members, func(a, b statusMember) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Instance, b.Instance))
	})
	st.Hint = php.StaleCure(st.Line)
	for _, m := range st.Members {
		st.Hint = cmp.Or(st.Hint, php.StaleCure(m.Reason))
	}
	for _, err := range causes(v.BucketErr, v.PointerErr, v.Garbage, v.Untrusted, v.HeadErr, v.MembersErr) {
		st.Problems = append(st.Problems, said(err))
	}
	return st
}

func (v view) member(m fleet.Member) statusMember {
	vote := ""
	if v.HasHead && m.Vote.Epoch == v.Head.Epoch {
		vote = "no"
		if m.Vote.Yes {
			vote = "yes"
		}
	}
	age := max(0, int64(v.Now.Sub(time.Unix(m.Seen, 0)).Seconds()))
	return statusMember{m.Instance, m.Group, m.Zone, m.Phase, m.Active.Release, vote, m.Error, m.Progress, age, m.Version, 0}
}

// waves says who is in which wave of an open rollout that goes out in several.
func (v view) waves() map[string]int {
	h := v.Head
	plan, err := fleet.ParsePlan(v.Pointer.Policy)
	if err != nil || !h.State.Open() || h.Kind == fleet.KindRollback || h.Sequence != v.Pointer.Sequence || len(plan.Waves) == 0 || h.CommittedEpoch == 0 {
		return nil
	}
	return plan.Assign(h, v.Members)
}

// summary is one line: what is stuck and why, or what all are on.
func (v view) summary() string {
	h := v.Head
	switch {
	case v.err() != nil:
		return "cannot tell: " + said(v.err())
	case v.Garbage != nil:
		return "the pointer cannot be read: " + said(v.Garbage)
	case v.Untrusted != nil && !(v.HasHead && v.Pointer.Sequence == v.Head.CommittedSequence):
		return fmt.Sprintf("the pointer is refused: %s; %s", said(v.Untrusted), v.onRelease())
	case v.Pointer.Release == "" && !v.HasHead:
		return "nothing was pushed yet"
	case v.lostHead():
		return "the table's head is lost: `push -init` mends it"
	case v.HasHead && (h.State.Open() || h.State == fleet.Commit):
		return v.underWay()
	case v.HasHead && v.Live > 0 && h.Automatic() && h.State == fleet.Abort:
		return fmt.Sprintf("%s is live and fails: %s; the rollback to %s was aborted: %s; %s", h.CommittedRelease, h.Why, h.Release, h.Reason, v.wayBack())
	case v.HasHead && v.Pointer.Sequence > h.Sequence && h.Held(v.Pointer.Sequence):
		return v.newerHeld()
	case v.Live == 0:
		return "no instance is live; " + v.pending()
	case h.Frozen != nil:
		return fmt.Sprintf("frozen %s; %s", h.Frozen, v.onRelease())
	case v.HasHead && h.State == fleet.Abort && v.Pointer.Sequence == h.Sequence:
		return fmt.Sprintf("%s was aborted: %s; %s", h.Release, h.Reason, v.again())
	case v.Pointer.Sequence > h.CommittedSequence:
		return v.pending()
	case v.HasHead && h.IsBad(v.Pointer.Sequence) && h.Automatic():
		return fmt.Sprintf("%s was rolled back: %s; %s", v.Pointer.Release, h.Why, v.onRelease())
	}
	return v.onRelease()
}

// wayBack says what comes of a rollback of the fleet's own that was aborted, and of a push that came after it.
func (v view) wayBack() string {
	h := v.Head
	if v.Pointer.Sequence <= h.Sequence {
		return v.again()
	}
	own := "not tried again: `push -rollback` goes back" // a retry would be of the newer push
	if h.Again == h.Sequence || !h.Held(h.Sequence) && h.RetryAt > 0 {
		own = v.again()
	}
	switch {
	case h.Held(v.Pointer.Sequence):
		return own + "; " + v.newerHeld()
	case h.Frozen != nil && v.Pointer.Kind != fleet.KindRollback:
		return fmt.Sprintf("%s; %s waits: frozen %s", own, v.Pointer.Release, h.Frozen)
	}
	return fmt.Sprintf("%s is rolled out next", v.Pointer.Release)
}

func (v view) newerHeld() string {
	return fmt.Sprintf("%s is held: `push -retry` lets it go live", v.Pointer.Release)
}

// again says what comes of an epoch that was aborted.
func (v view) again() string {
	h := v.Head
	switch {
	case spent(h, h.Sequence):
		return "not tried again: push anew"
	case h.Again == h.Sequence:
		return "tried again next"
	case !h.Held(h.Sequence) && h.RetryAt > 0:
		return "tried again at " + time.Unix(h.RetryAt, 0).UTC().Format(time.RFC3339)
	}
	return "held: `push -retry` tries it again"
}

// lostHead says that instances have seen epochs that the head does not know.
func (v view) lostHead() bool {
	return slices.ContainsFunc(v.Members, func(m fleet.Member) bool { return m.Newest() > v.Head.Epoch })
}

// underWay says what an open epoch waits for.
func (v view) underWay() string {
	h := v.Head
	var waiting []string
	for _, m := range v.Members {
		if h.State == fleet.Wave && m.Vote.Epoch == h.Epoch {
			continue // whom the wave has reached is in waits
		}
		if m.Phase == fleet.Serve && (h.State.Open() && m.Vote.Epoch != h.Epoch || h.State == fleet.Commit && m.Active.Epoch != h.Epoch) {
			waiting = append(waiting, strings.TrimSpace(m.Instance+" "+m.Progress))
		}
	}
	line := fmt.Sprintf("epoch %d to %s is in state %s", h.Epoch, h.Release, h.State)
	if h.Waits != "" {
		line += ", " + h.Waits
	}
	if len(waiting) == 0 {
		return line
	}
	slices.Sort(waiting)
	more := ""
	if n := len(waiting); n > 3 {
		waiting, more = waiting[:3], fmt.Sprintf(" and %d more", n-3)
	}
	return line + ", waiting for " + strings.Join(waiting, ", ") + more
}

func (v view) pending() string {
	if v.Pointer.Release == "" {
		return "there is no pointer"
	}
	line := fmt.Sprintf("%s is published and not rolled out yet", v.Pointer.Release)
	for _, m := range v.Members {
		if live(m, v.Now) && m.Error != "" { // such as a signature that it lacks
			return fmt.Sprintf("%s; %s says: %s", line, m.Instance, m.Error)
		}
	}
	return line
}

// onRelease counts the live instances that serve what was committed, and names the others.
func (v view) onRelease() string {
	want, on := v.Head.CommittedRelease, 0
	var others []string
	for _, m := range v.Members {
		switch {
		case !live(m, v.Now):
		case m.Active.Release == want:
			on++
		default:
			others = append(others, strings.TrimSuffix(fmt.Sprintf("%s (%s: %s", m.Instance, m.Phase, m.Error), ": ")+")")
		}
	}
	if len(others) == 0 {
		return fmt.Sprintf("all %d on %s", on, want)
	}
	slices.Sort(others)
	return fmt.Sprintf("%d of %d on %s; not: %s", on, on+len(others), want, strings.Join(others, ", "))
}

// print writes the table for people.
func (st Status) print(c *console, where string) {
	c.say("%s", st.Line)
	c.say("%s", where)
	for _, p := range st.Problems {
		if !strings.HasSuffix(st.Line, p) { // else it is what the line says
			c.say("problem    %s", p)
		}
	}
	if st.Hint != "" {
		c.say("hint       %s", st.Hint)
	}
	if p := st.Pointer; p != nil {
		c.say("pointer    %s  sequence %d", p.Release, p.Sequence)
	}
	if h := st.Head; h != nil {
		c.say("%s", strings.TrimRight(fmt.Sprintf("head       %s  sequence %d, epoch %d %s, coordinator %s  %s",
			h.Release, h.Sequence, h.Epoch, h.State, h.Coordinator, h.Reason), " "))
	}
	if t := st.Committed; t != nil {
		c.say("committed  %s  sequence %d", t.Release, t.Sequence)
	}
	if f := st.Freeze; f != nil {
		c.say("frozen     %s", &fleet.Freeze{By: f.By, Why: f.Why, Until: f.Until})
	}
	if len(st.Members) == 0 {
		return
	}
	table := tabwriter.NewWriter(c.human, 0, 0, 2, ' ', 0)
	inWaves := slices.ContainsFunc(st.Members, func(m statusMember) bool { return m.Wave > 0 })
	wave := func(text string) string {
		if !inWaves {
			return ""
		}
		return text + "\t"
	}
	fmt.Fprintln(table, "INSTANCE\tGROUP\tZONE\tPHASE\tRELEASE\tVOTE\t"+wave("WAVE")+"SEEN\tVERSION\tPROGRESS, REASON")
	for _, m := range st.Members {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s%s\t%s\t%s\n", printable(m.Instance), printable(m.Group), cmp.Or(printable(m.Zone), "-"), m.Phase,
			cmp.Or(string(m.Release), "-"), cmp.Or(m.Vote, "-"), wave(fmt.Sprint(m.Wave)), time.Duration(m.SeenS)*time.Second, printable(m.Version),
			printable(strings.TrimSpace(m.Progress+" "+m.Reason)))
	}
	table.Flush()
}
