package sim

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// truth is what an observer of everything knows: the invariants are judged by it, by their names in the design.
type truth struct {
	w           *scene
	head        fleet.Head
	committedAt time.Duration // when the committed release of the head became another
	decisions   map[int64]fleet.EpochState
	commits     map[int64]fleet.Head
	beats       map[string]time.Duration // true time of the last beat that landed
	landed      map[beat]time.Duration   // true time of every beat that landed
	woke        map[string]time.Duration // true time of the last beat that ended a silence
	led         map[string]time.Duration // true time of the last beat on the head, by coordinator
	rows        map[string]fleet.Member  // as the table has them
	waves       map[int64][]fleet.Head
	runs        map[int64]int    // completed runs of fleet_once, by sequence
	held        map[int64]bool   // sequences that people have taken back before an epoch was open for them
	yes         map[promise]bool // every yes that ever landed; a row may be overwritten by a registration that comes late
}

// promise is a yes of an instance in an epoch.
type promise struct {
	instance string
	epoch    int64
	release  release.ID
}

func newTruth(w *scene) truth {
	return truth{
		w: w, decisions: map[int64]fleet.EpochState{}, commits: map[int64]fleet.Head{}, beats: map[string]time.Duration{}, landed: map[beat]time.Duration{}, woke: map[string]time.Duration{}, led: map[string]time.Duration{},
		rows: map[string]fleet.Member{}, waves: map[int64][]fleet.Head{}, runs: map[int64]int{}, held: map[int64]bool{}, yes: map[promise]bool{},
	}
}

// written sees every write that lands.
func (t *truth) written(by sender, k fleet.Key, before, after fleet.Item) {
	if k.Sort == "head" {
		h, _, err := t.w.ledger().Head(context.Background(), true)
		if err != nil {
			t.w.fail("head cannot be read: %v", err)
			return
		}
		t.headWritten(by, h)
		return
	}
	if _, isRow := after["incarnation"]; !isRow {
		return
	}
	if number(after, "missed") > number(before, "missed") {
		t.accused(by, t.head, t.w.now, before)
	}
	m := t.row(k.Sort)
	last := t.beats[k.Sort]
	if before == nil || before["beat"] != after["beat"] || before["incarnation"] != after["incarnation"] {
		missed, _ := before["missed"].(int64)
		if missed > 0 || t.w.now-t.beats[k.Sort] > 30*time.Second {
			t.woke[k.Sort] = t.w.now
		}
		t.beats[k.Sort], t.landed[beatOf(after)] = t.w.now, t.w.now
	}
	was := t.rows[k.Sort]
	t.rows[k.Sort], by.forgotten = m, false
	if v := was.Vote; v.Yes && m.Vote != v && m.Vote.Epoch <= v.Epoch && (by.sent >= last || m.Incarnation == was.Incarnation) { // else it was sent before, and comes late
		t.w.fail("I6 sticky vote: %s takes its yes of epoch %d back: %+v", by.id, v.Epoch, m.Vote)
	}
	t.voteWritten(by, was, m)
	if a := m.Active; a.Epoch > 0 && a != was.Active {
		t.reported(by, a)
	}
}

// reported judges what a row begins to say that its machine serves (I14): the link leads there durably, and since it was moved its
// check has passed, which is saved, too.
func (t *truth) reported(by sender, a fleet.Active) {
	switch s := by.state; {
	case by.active != a.Release || by.linked != a.Release:
		t.w.fail("I14 honest report: %s reports %s active, its link is at %q, durably at %q", by.id, a.Release, by.active, by.linked)
	case by.passed != a.Release:
		t.w.fail("I14 honest report: %s reports %s active, and what has passed its check since the flip is %q", by.id, a.Release, by.passed)
	case s.Flipped.Epoch != a.Epoch || s.Settled != a.Epoch:
		t.w.fail("I14 honest report: %s reports epoch %d active, and has saved that it flipped for %d and is settled for %d", by.id, a.Epoch, s.Flipped.Epoch, s.Settled)
	}
}

func (t *truth) row(id string) fleet.Member {
	rows, err := t.w.ledger().Members(context.Background())
	if err != nil {
		t.w.fail("rows cannot be read: %v", err)
	}
	for _, m := range rows {
		if m.Instance == id {
			return m
		}
	}
	return fleet.Member{}
}

func (t *truth) voteWritten(by sender, was, m fleet.Member) {
	if !m.Vote.Yes || m.Vote == was.Vote && m.Incarnation == was.Incarnation {
		return
	}
	t.yes[promise{by.id, m.Vote.Epoch, m.Vote.Release}] = true
	now := t.waves[m.Vote.Epoch] // one that tries the same release again may have taken it along, before it was started again
	for e, waves := range t.waves {
		again := len(now) > 0 && now[0].Release == by.active
		if t.decisions[e] == fleet.Abort && e < m.Vote.Epoch && waves[0].Release == by.active && !again && !slices.Contains(t.releases(), by.active) {
			t.w.fail("waves: %s votes in epoch %d, still on %s of the aborted epoch %d", by.id, m.Vote.Epoch, by.active, e)
		}
	}
	if by.state.Vote != m.Vote {
		t.w.fail("I6 sticky vote: %s sent a vote that it had not persisted", by.id)
	}
}

// become takes a head as it stands.
func (t *truth) become(h fleet.Head) {
	if h.CommittedRelease != t.head.CommittedRelease {
		t.committedAt = t.w.now
	}
	t.head = h
}

func (t *truth) headWritten(by sender, h fleet.Head) {
	was := t.head
	t.become(h)
	if h.Coordinator == by.id {
		t.led[by.id] = t.w.now
	}
	if h.Epoch != was.Epoch || h.State != was.State || h.Fence != was.Fence {
		t.w.note("head by %s: epoch %d %s %s fence %d %s", by.id, h.Epoch, h.State, h.Release, h.Fence, h.Reason)
	}
	if f := was.Frozen; f != nil && h.Frozen == nil && !f.Over(t.w.wall().Add(time.Minute)) {
		t.w.fail("freeze: lifted by %s before its time %d", by.id, f.Until)
	}
	if h.Epoch < was.Epoch || h.Fence < was.Fence || h.CommittedSequence < was.CommittedSequence {
		t.w.fail("I4 order: head went from epoch %d fence %d to %d fence %d", was.Epoch, was.Fence, h.Epoch, h.Fence)
	}
	if h.Epoch == was.Epoch && h.Cutoff != was.Cutoff {
		if h.Cutoff < was.Cutoff || h.Frozen != nil || !was.State.Open() || h.Kind == fleet.KindRollback {
			t.w.fail("waves: epoch %d %s %q went from cutoff %x to %x, frozen: %v", h.Epoch, was.State, h.Kind, was.Cutoff, h.Cutoff, h.Frozen)
		}
		t.waves[h.Epoch] = append(t.waves[h.Epoch], h)
	}
	switch {
	case h.Epoch > was.Epoch:
		floor := by.state.Floor
		if by.doubted { // the floor was not raised, as far as it knows: its save said that it had failed
			floor = 0
		}
		t.opened(floor, was, h)
	case h.State != was.State:
		t.moved(was, h)
		t.counted(by, was, h)
	}
}

func (t *truth) opened(floor int64, was, h fleet.Head) {
	if h.Epoch != was.Epoch+1 {
		t.w.fail("I4 order: epoch %d opened after %d", h.Epoch, was.Epoch)
	}
	if was.Epoch > 0 && !was.Decided() {
		t.w.fail("I4 order: epoch %d opened while %d is undecided", h.Epoch, was.Epoch)
	}
	if h.Automatic() {
		t.wentBack(was, h)
		return
	}
	if was.IsBad(h.Sequence) {
		t.w.fail("bad: epoch %d opened for sequence %d, which was rolled back", h.Epoch, h.Sequence)
	}
	if h.Sequence < was.Sequence || h.Sequence <= was.CommittedSequence || h.Sequence < floor {
		t.w.fail("I2 fresh: epoch %d opened for sequence %d, below %d or the floor %d", h.Epoch, h.Sequence, was.Sequence, floor)
	}
	if was.Frozen != nil && h.Kind != fleet.KindRollback {
		t.w.fail("freeze: epoch %d opened in a frozen scope", h.Epoch)
	}
}

// wentBack judges a rollback that the fleet begins by itself: it leaves a commit that failed, for a release that was good.
func (t *truth) wentBack(was, h fleet.Head) {
	again := was.State == fleet.Abort && was.Automatic() && was.Source == h.Source
	if !again && (was.State != fleet.Commit || was.Kind == fleet.KindRollback || was.Release == h.Release) {
		t.w.fail("rollback: epoch %d goes back from epoch %d %s %q", h.Epoch, was.Epoch, was.State, was.Kind)
	}
	if h.Kind != fleet.KindRollback || h.Sequence != was.Sequence || !h.IsBad(h.Sequence) || t.w.pushed[h.Source] != h.Release {
		t.w.fail("rollback: epoch %d goes back to %s of %d with sequence %d, bad %v", h.Epoch, h.Release, h.Source, h.Sequence, h.Bad)
	}
}

func (t *truth) moved(was, h fleet.Head) {
	if d, ok := t.decisions[h.Epoch]; ok && (h.State == fleet.Commit || h.State == fleet.Abort) && d != h.State {
		t.w.fail("I3 one decision: epoch %d was %s and is %s", h.Epoch, d, h.State)
	}
	switch {
	case was.State == fleet.Prepare && h.State == fleet.Wave:
		return
	case was.State.Open() && (h.State == fleet.Commit || h.State == fleet.Abort):
		t.decisions[h.Epoch] = h.State
	case was.State == fleet.Commit && h.State == fleet.Done:
		return
	default:
		t.w.fail("I3 one decision: epoch %d went from %s to %s", h.Epoch, was.State, h.State)
	}
	if h.Reason == "superseded by a newer push" && h.State == fleet.Abort && t.barred(h) {
		t.w.fail("hold: epoch %d is superseded, and all that is newer is on hold", h.Epoch)
	}
	if h.State == fleet.Commit {
		if was.Frozen != nil && h.Kind != fleet.KindRollback {
			t.w.fail("freeze: epoch %d committed in a frozen scope", h.Epoch)
		}
		t.committed(h)
	}
}

// barred says that no newer push than the head's may go live.
func (t *truth) barred(h fleet.Head) bool {
	for s := range t.w.pushed {
		if s > h.Sequence && !t.held[s] {
			return false
		}
	}
	return true
}

// committed judges a commit (I5, I8): every machine in service is behind it, or was rightly left out.
func (t *truth) committed(h fleet.Head) {
	t.commits[h.Epoch] = h
	if t.held[h.Sequence] && !h.Automatic() {
		t.w.fail("hold: epoch %d committed %s of %d, which was on hold before it was opened", h.Epoch, h.Release, h.Sequence)
	}
	yes := 0
	for _, b := range t.w.machines {
		m := t.rows[b.id]
		if t.yes[promise{b.id, h.Epoch, h.Release}] {
			yes++
			continue
		}
		// A silence that ends between the coordinator's sweep and its decision was one: the member finds the commit when
		// it reads the head.
		silent := t.w.now-t.beats[b.id] > 30*time.Second || t.row(b.id).Missed > 0 || t.w.now-t.woke[b.id] < 5*time.Second
		// The lease of a coordinator that was replaced runs from its last beat on the head.
		led, was := t.led[b.id]
		silent = silent || was && h.Coordinator != b.id && t.w.now-led > 30*time.Second && t.w.now-t.beats[b.id] > 12*time.Second
		left := m.Phase == fleet.Leaving || m.Phase == fleet.Out || m.Vote.Epoch == h.Epoch
		if b.up && b.inService && !silent && !left {
			t.w.fail("I5 valid commit, I8 joiners, I10 no remote clocks: epoch %d committed %s without %s, which is in service on %q, last beat %v ago, row %s vote %+v",
				h.Epoch, h.Release, b.id, b.active, t.w.now-t.beats[b.id], m.Phase, m.Vote)
		}
	}
	if m := t.rows[h.Coordinator]; t.w.hooked && h.Kind != fleet.KindRollback && m.Vote.Epoch == h.Epoch && m.Vote.Yes && m.Phase == fleet.Serve &&
		h.Once != fmt.Sprintf("ok %d", h.Sequence) {
		t.w.fail("fleet_once: epoch %d committed, and the head says %q", h.Epoch, h.Once)
	}
	if yes == 0 {
		t.w.fail("I5 valid commit: epoch %d committed without a yes", h.Epoch)
	}
}

// saved judges what a machine makes durable, against what it had made durable before (I6, I7, I15).
func (t *truth) saved(b *machine, s fleet.State) {
	was := b.state
	if b.doubted { // a save said that it had failed, and may have happened: what was not acted on may be taken back
		b.doubted = reflect.DeepEqual(s, was)
		return
	}
	if s.Epoch < was.Epoch || s.Decision.Epoch < was.Decision.Epoch {
		t.w.fail("I15 in order: %s went back from epoch %d, decision %d to %d, %d", b.id, was.Epoch, was.Decision.Epoch, s.Epoch, s.Decision.Epoch)
	}
	if s.Floor < was.Floor {
		t.w.fail("I2 fresh: %s lowers its floor from %d to %d", b.id, was.Floor, s.Floor)
	}
	if was.Vote.Yes && s.Vote.Epoch <= was.Vote.Epoch && s.Vote != was.Vote {
		t.w.fail("I6 sticky vote: %s replaces its yes of epoch %d", b.id, was.Vote.Epoch)
	}
	if s.Vote.Yes && s.Vote != was.Vote && !b.disk[s.Vote.Release] {
		t.w.fail("I6 sticky vote: %s promises %s in epoch %d, which is not durable on its disk", b.id, s.Vote.Release, s.Vote.Epoch)
	}
	if c, ok := t.commits[s.Decision.Epoch]; s.Decision.Epoch > was.Decision.Epoch && (!ok || c.Release != s.Decision.Release) {
		t.w.fail("I7 no early flip: %s keeps a decision of epoch %d for %s that was not made", b.id, s.Decision.Epoch, s.Decision.Release)
	}
}

// flip judges a link that is about to move (I7, I13).
func (t *truth) flip(b *machine, want fleet.Want) {
	h, ok := t.commits[want.Epoch]
	if was := b.state.Flipped; was.Epoch > want.Epoch && t.decisions[was.Epoch] != fleet.Abort {
		t.w.fail("waves: %s goes back to epoch %d from %d, which was not aborted", b.id, want.Epoch, was.Epoch)
	}
	if f := b.state.Flipped; f.Epoch == want.Epoch && f.Release == b.active && b.active == want.Commit.Release {
		t.w.fail("I16 re-runnable: %s flips to %s for epoch %d a second time", b.id, b.active, want.Epoch)
	}
	ahead := b.state.Ahead.Epoch == want.Epoch && b.state.Decision.Epoch < want.Epoch // the commit came while it waited for the wave's moment
	if (ahead || !ok) && len(t.waves[want.Epoch]) > 0 {
		t.flipAhead(b, want)
		return
	}
	if !ok || h.Release != want.Commit.Release {
		t.w.fail("I7 no early flip: %s flips to %s for epoch %d, which did not commit it", b.id, want.Commit.Release, want.Epoch)
	}
	if b.state.Decision.Epoch < want.Epoch {
		t.w.fail("I7 no early flip: %s flips before the decision of epoch %d is persisted", b.id, want.Epoch)
	}
}

// authentic judges that what becomes visible is what the note of the commit says (I1).
func (t *truth) authentic(b *machine, want fleet.Want) {
	note, err := t.w.ledger().Note(context.Background(), want.Commit.Note())
	if err != nil || note == nil || note.Pointer.Release != want.Commit.Release || note.Digest != b.digests[want.Commit.Release] {
		t.w.fail("I1 authentic: %s flips to %s with digest %q, the note of %d says %+v, %v", b.id, want.Commit.Release, b.digests[want.Commit.Release], want.Commit.Note(), note, err)
	}
}

// removed judges a release that was cleaned up (I17); that it was promised is seen by [truth.check].
func (t *truth) removed(b *machine, known fleet.Head, id, previous release.ID) {
	named := func(h fleet.Head) bool {
		return slices.Contains([]release.ID{h.Release, h.CommittedRelease, h.Good.Release, h.Before.Release}, id)
	}
	switch id {
	case b.active, previous, b.state.Decision.Release, b.state.Ahead.Release, b.state.Flipped.Release:
		t.w.fail("I17 clean-up: %s removed %s, which it serves, served before, or is about to", b.id, id)
	}
	if named(known) && named(t.head) { // what it knew may be a turn old
		t.w.fail("I17 clean-up: %s removed %s, which the head names", b.id, id)
	}
}

// flipAhead judges a flip of a wave, before the commit (I7): the wave was there and has reached the machine, which has voted yes.
func (t *truth) flipAhead(b *machine, want fleet.Want) {
	reached := slices.ContainsFunc(t.waves[want.Epoch], func(h fleet.Head) bool {
		return h.Release == want.Commit.Release && h.Reaches(b.id, b.group)
	})
	if !reached {
		t.w.fail("I7 no early flip: %s flips to %s in epoch %d, whose waves have not reached it", b.id, want.Commit.Release, want.Epoch)
	}
	if v := b.state.Vote; !v.Yes || v.Epoch != want.Epoch || v.Release != want.Commit.Release {
		t.w.fail("I7 no early flip: %s flips to %s in a wave of epoch %d, and its vote is %+v", b.id, want.Commit.Release, want.Epoch, v)
	}
	if b.state.Ahead.Epoch != want.Epoch {
		t.w.fail("I7 no early flip: %s flips in a wave of epoch %d that it has not persisted", b.id, want.Epoch)
	}
}

// check runs after every event.
func (t *truth) check(what string) {
	for _, b := range t.w.machines {
		if b.active != "" && !b.disk[b.active] {
			t.w.fail("I13 atomic view: after %s, %s serves %s, which is not on its disk", what, b.id, b.active)
		}
		if v := b.state.Vote; v.Yes && v.Epoch == t.head.Epoch && t.head.State.Open() && !t.w.lost() && !b.disk[v.Release] {
			t.w.fail("I6 sticky vote, I17 clean-up: after %s, %s has promised %s in epoch %d, which is open, and has it no more", what, b.id, v.Release, v.Epoch)
		}
		// One that was forgotten while it was off, and comes back while the table does not answer, serves and says that it is isolated.
		isolated := b.forgotten && !b.inService
		if b.serving && !b.gone && b.active != "" && t.rows[b.id].Instance == "" && !isolated {
			t.w.fail("I9 no silent staleness: after %s, %s serves %s without a row", what, b.id, b.active)
		}
		if b.view != nil && b.up {
			t.stale(b, b.view(), what)
		}
	}
}

// newsTakes is the longest time in which an agent that the table answers gets to know of a commit, whatever is throttled.
const newsTakes = 2 * time.Minute

// stale judges an agent that says it is in service, but is not on what the fleet committed (I9): once it knows, it shows why, and it
// knows soon.
func (t *truth) stale(b *machine, v fleet.View, what string) {
	h := v.Head
	ahead := h.State == fleet.Wave && b.active == h.Release
	if !b.inService || b.active == t.head.CommittedRelease || v.Behind || ahead || v.Problems["head lost"] != "" {
		return
	}
	if h.CommittedEpoch > 0 && b.active != h.CommittedRelease {
		t.w.fail("I9 no silent staleness: after %s, %s serves %s, knows that epoch %d committed %s, and shows nothing", what, b.id, b.active, h.CommittedEpoch, h.CommittedRelease)
	}
	if old := t.w.now - max(t.committedAt, b.since, b.pausedUntil); old > newsTakes && !t.w.lost() {
		t.w.fail("I9 no silent staleness: after %s, %s serves %s, and for %v has not known that %s is committed", what, b.id, b.active, old, t.head.CommittedRelease)
	}
}

// settled says what is missing until everybody that lives is on what the fleet committed, and nothing is under way.
func (t *truth) settled() string {
	h := t.head
	newest := t.w.sequence
	if h.State.Open() || h.State == fleet.Commit {
		return "epoch " + string(h.State)
	}
	if newest > h.Sequence && h.Frozen == nil && newest > 0 {
		return "newest push not tried"
	}
	if h.Sequence == newest && h.State == fleet.Abort && h.Hold != newest && !t.w.broken[t.w.pushed[newest]] {
		return "aborted, to be tried again"
	}
	for _, b := range t.w.machines {
		if b.gone || !b.up {
			continue
		}
		if t.w.spoilt[h.CommittedRelease] && b.active == h.CommittedRelease {
			continue // its check fails for ever; there was nothing good to go back to
		}
		if phase, ready := b.phase(); h.CommittedEpoch > 0 && (b.active != h.CommittedRelease || phase != fleet.Serve || !ready) {
			return b.id + " is not in service on " + string(h.CommittedRelease)
		}
	}
	return ""
}

func (t *truth) releases() []release.ID {
	seen := map[release.ID]bool{}
	var out []release.ID
	for e := int64(1); e <= t.head.Epoch; e++ {
		if h, ok := t.commits[e]; ok && !seen[h.Release] {
			seen[h.Release] = true
			out = append(out, h.Release)
		}
	}
	return out
}
