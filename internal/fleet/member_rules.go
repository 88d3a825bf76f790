package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
)

// retryLocal is the wait before a machine tries again what failed for reasons of its own: catching up, settling.
const retryLocal = 10 * time.Second

// member applies the rules of a member and says what the machine should do: apply what was decided, then vote,
// then look at a pointer that might open the next epoch.
func (n *Node) member(ctx context.Context) Want {
	if w := n.apply(ctx); w.Task != Idle {
		return w
	}
	if w := n.once(ctx); w.Task != Idle {
		return w
	}
	f := n.state.Flipped
	settle := Want{Task: Settle, Epoch: f.Epoch, Commit: f, Joining: n.phase != Serve, Back: n.state.Ahead.Epoch > f.Epoch}
	if note := n.notes[f.Note()]; note != nil {
		settle.Note = *note
	}
	unsettled := n.state.Settled != f.Epoch && n.now >= n.settleAt
	if unsettled && n.state.Failed != f.Epoch {
		return settle
	}
	if w := n.vote(ctx); w.Task != Idle { // before settling is tried again: the next release may be the cure
		return w
	}
	if unsettled || n.watched() {
		return settle
	}
	if n.offered != nil && n.inspected == nil && n.registered && !n.lost && n.now >= n.inspectAt && n.mayOpen(*n.offered) {
		return Want{Task: Inspect, Epoch: n.head.Epoch + 1, Note: *n.offered}
	}
	return Want{}
}

// apply brings the machine to what the fleet decided: the decision is persisted, then flipped to, once the release is here.
func (n *Node) apply(ctx context.Context) Want {
	if n.haveHead && !n.lost {
		if t := n.target(); t.Epoch > n.state.Decision.Epoch && (failpoint.Hit("A15") != nil || !n.decided(t)) {
			return Want{}
		}
		n.goAhead()
	}
	d := n.goal()
	if v := n.state.Vote; weak.Rule == "M7" && v.Yes && v.Epoch > n.state.Flipped.Epoch {
		early := Commitment{Epoch: v.Epoch, Sequence: n.head.Sequence, Release: v.Release}
		return Want{Task: Flip, Epoch: v.Epoch, Commit: early}
	}
	if d.Epoch == n.state.Flipped.Epoch {
		return Want{}
	}
	if n.holds(d) {
		w := Want{Task: Flip, Epoch: d.Epoch, Commit: d, At: n.flipAt}
		if d.Epoch < n.state.Flipped.Epoch { // back from a wave: at once
			w.At = n.now
		}
		return w
	}
	if n.now < n.retryAt || n.catchup != nil && n.phase != Serve && n.head.State.Open() && n.state.Vote.Epoch < n.head.Epoch {
		return Want{} // wait, or help the open epoch along: what is committed cannot be had here
	}
	note, err := n.noteOf(ctx, d.Note())
	if err == nil && note.Pointer.Release != d.Release {
		err = fmt.Errorf("note %d names release %s; the head %s", d.Note(), note.Pointer.Release, d.Release)
	}
	if err != nil {
		n.catchUpFailed(err)
		return Want{}
	}
	return Want{Task: Stage, Epoch: d.Epoch, Note: *note, Commit: d, Joining: true}
}

// decided persists a commit before anything is done about it, and fixes the moment of the flip; false: it could not be saved. From the
// second try on that is told like a flip that failed, so that the epoch need not wait for its time; a later try takes it back.
func (n *Node) decided(t Commitment) bool {
	was, again := n.state, n.unsaved == t.Epoch
	n.state.Decision = t
	if again {
		n.state.Error = ""
		if n.state.Failed == t.Epoch {
			n.state.Failed = 0
		}
	}
	err := failpoint.Hit("A16")
	if err == nil {
		err = n.save()
	}
	if err != nil {
		n.state, n.unsaved = was, t.Epoch
		if again {
			n.state.Failed = t.Epoch
		}
		n.unfit(err)
		return false
	}
	n.unsaved, n.dirty = 0, n.dirty || again
	n.retryAt, n.catchup = 0, nil
	n.flipAt = n.o.Clock.Boot()
	if n.head.State == Commit && n.head.Epoch == t.Epoch {
		n.flipAt = n.flipTime()
	}
	return true
}

// holds says whether the release of a commitment is on this disk, complete and durable: promised by a yes, or brought up
// by this process.
func (n *Node) holds(d Commitment) bool {
	v := n.state.Vote
	promised := v.Yes && v.Epoch == d.Epoch && v.Release == d.Release
	left := d == n.state.Decision && n.state.Ahead.Epoch > d.Epoch // it was served here until a wave came
	return (promised || left) && n.broken != d.Epoch || n.held.Epoch == d.Epoch && n.held.Release == d.Release
}

// vote asks for the release of the open epoch, if this member has not voted yet.
func (n *Node) vote(ctx context.Context) Want {
	h := n.head
	if !n.haveHead || n.lost || !n.registered || !h.State.Open() || n.state.Vote.Epoch >= h.Epoch || n.now < n.voteAt {
		return Want{}
	}
	c := h.Proposed()
	note, err := n.noteOf(ctx, c.Note())
	var refused *release.Error
	if errors.As(err, &refused) { // not signed as it must be, or no pointer at all
		n.cast(Vote{Epoch: h.Epoch, Release: h.Release, Kind: AboutRelease}, err)
		return Want{}
	}
	if err != nil {
		return Want{} // shown; the next step reads again
	}
	if note.Pointer.Release != h.Release || note.Digest != h.Digest {
		n.cast(Vote{Epoch: h.Epoch, Release: h.Release, Kind: AboutRelease},
			fmt.Errorf("note %d names release %s, digest %.12s; the head %s, %.12s", c.Note(), note.Pointer.Release, note.Digest, h.Release, h.Digest))
		return Want{}
	}
	return Want{Task: Stage, Epoch: h.Epoch, Note: *note, Commit: c}
}

// noteOf reads a note once. A missing note of a committed sequence is an error.
func (n *Node) noteOf(ctx context.Context, sequence int64) (*Note, error) {
	if have := n.notes[sequence]; have != nil {
		return have, nil
	}
	note, err := n.o.Ledger.Note(ctx, sequence)
	if err == nil && note == nil {
		err = fmt.Errorf("note of sequence %d is not in the table", sequence)
	}
	if !n.note("note", err) {
		return nil, err
	}
	if len(n.notes) == 4 { // the open epoch's, the committed one's, and some slack
		clear(n.notes)
	}
	n.notes[sequence] = note
	return note, nil
}

// Inspected reports a pointer's digest, or why it cannot be deployed as it stands; it is looked at again after a while.
func (n *Node) Inspected(w Want, digest string, err error) {
	if n.offered == nil || n.offered.Sequence != w.Note.Sequence {
		return
	}
	if !n.note("pointer", err) {
		n.inspectAt = n.o.Clock.Boot() + n.o.LookAgain
		return
	}
	note := *n.offered
	note.Digest = digest
	n.inspected, n.openAt = &note, 0
}

// Staged reports that the release of a Stage want is complete, verified and durable on this disk, or why not; machine says
// that the reason is this machine's. For an open epoch this is the vote: persisted first, sent with the next beat.
func (n *Node) Staged(w Want, err error, machine bool) {
	if err == nil {
		n.held = w.Commit
		n.note("release", nil)
	}
	if w.Joining {
		if err != nil {
			n.catchUpFailed(err)
		}
		return
	}
	if !n.head.State.Open() || n.head.Epoch != w.Epoch || n.state.Vote.Epoch >= w.Epoch {
		return // the epoch is over; what is on disk stays held
	}
	v := Vote{Epoch: w.Epoch, Release: w.Commit.Release, Yes: err == nil}
	if err != nil {
		v.Kind = AboutRelease
		if machine {
			v.Kind = AboutMachine
		}
	}
	n.cast(v, err)
}

// cast persists a vote and lets the next beat send it. A no of the machine takes this member out, and so does a vote that cannot be
// made durable: it is not sent, and is tried again after a while.
func (n *Node) cast(v Vote, reason error) {
	was, wasError := n.state.Vote, n.state.Error
	n.state.Vote, n.state.Error = v, ""
	if reason != nil {
		n.state.Error = cut(reason.Error())
	}
	if err := n.save(); err != nil {
		n.state.Vote, n.state.Error = was, wasError
		n.voteAt = n.o.Clock.Boot() + retryLocal
		n.unfit(err)
		return
	}
	n.note("release", reason)
	n.dirty = true
	if v.Kind == AboutMachine {
		n.setPhase(Out)
	}
	n.log.Info("vote", "epoch", v.Epoch, "release", string(v.Release), "yes", v.Yes, "reason", n.state.Error)
}

func (n *Node) catchUpFailed(err error) {
	n.catchup = err
	n.note("release", err)
	n.retryAt = n.o.Clock.Boot() + retryLocal
	n.unfit(err)
}

// unfit takes a member out of service that cannot follow the fleet for a reason of its machine: nobody should wait for it, and what it
// serves may be what the fleet has left.
func (n *Node) unfit(err error) {
	n.state.Error = cut(err.Error())
	n.dirty = true
	v := n.state.Vote
	broke := n.phase == Join && v.Yes && v.Epoch == n.state.Failed // a joiner is out, too, once it has promised what it cannot do
	if n.phase == Serve || broke {
		n.setPhase(Out)
	}
}

// FlipDone reports a durable flip at the given wall-clock time, or why it failed; then the release is brought up again.
func (n *Node) FlipDone(w Want, at time.Time, err error) {
	if err != nil {
		n.state.Failed, n.held, n.broken = w.Epoch, Commitment{}, w.Epoch
		n.catchUpFailed(fmt.Errorf("flip: %w", err))
		return
	}
	n.state.Flipped, n.state.FlippedAt, n.catchup = w.Commit, at.UnixMilli(), nil
	n.state.Settled, n.settleAt = 0, 0 // what was settled before is no proof: it may have been left for a wave and come back to
	n.note("release", nil)
	if n.save() != nil {
		return // active is durable all the same; a restart finds it there
	}
	n.log.Info("flipped", "epoch", w.Epoch, "release", string(w.Commit.Release))
}

// SettledDone reports that the release is served and healthy after the flip, or why not; it is tried again.
func (n *Node) SettledDone(w Want, err error) {
	if n.state.Flipped.Epoch != w.Epoch {
		return
	}
	n.note("service", err)
	was := n.state
	if err != nil {
		n.state.Settled, n.state.Failed, n.state.Error = 0, w.Epoch, cut(err.Error())
		n.settleAt = n.o.Clock.Boot() + retryLocal
	} else {
		n.state.Settled, n.state.Failed, n.state.Error = w.Epoch, 0, ""
		n.settleAt = n.o.Clock.Boot() + rewatch
	}
	if was.Settled == n.state.Settled && was.Failed == n.state.Failed && was.Error == n.state.Error {
		return // looked at again in a wave, and nothing is new
	}
	n.dirty = true
	if e := n.save(); e != nil && err == nil {
		n.state.Settled = 0
		n.settleAt = n.o.Clock.Boot() + retryLocal
	}
}

// FoundActive tells a node at start which release active points to. Where that is not what was flipped to, somebody moved
// the link or a crash lost the record: the decision is applied again.
func (n *Node) FoundActive(id release.ID) {
	if a := n.state.Ahead; a.Epoch > n.state.Decision.Epoch && a.Release == id && n.state.Flipped.Epoch < a.Epoch {
		n.state.Flipped, n.state.Settled = a, 0 // a wave was about to take it there, and did
	}
	if f := n.state.Flipped; f.Epoch > 0 && f.Release != id {
		n.log.Warn("active is not what was flipped to", "active", string(id), "flipped", string(f.Release))
		n.state.Flipped, n.state.Settled = Commitment{}, 0
	}
}
