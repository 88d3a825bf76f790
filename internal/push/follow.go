package push

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// How often the fleet is looked at: the head while nothing happens and while an epoch is under way, the members, and the
// pointer, which another push may have moved.
const (
	idleEvery    = time.Second
	openEvery    = 250 * time.Millisecond
	membersEvery = time.Second
	pointerEvery = 10 * time.Second
)

// sight is what is known of a fleet at one moment.
type sight struct {
	head      fleet.Head
	hasHead   bool
	pointer   int64 // sequence of the pointer when it was last read; 0: not read
	committed bool  // our sequence was seen committed
}

// judge says how the rollout of a sequence ended, or "" while it has not: see PROTOCOL, "When an epoch opens".
func judge(sequence int64, s sight) (Outcome, string) {
	h := s.head
	overtaken := max(h.Sequence, s.pointer) > sequence
	switch {
	case h.IsBad(sequence):
		return judgeBad(sequence, h)
	case s.hasHead && h.Sequence == sequence:
		return judgeOurs(sequence, s)
	case s.committed || s.hasHead && h.CommittedSequence == sequence:
		return Done, "" // the fleet is at the next epoch already
	case overtaken:
		return Superseded, fmt.Sprintf("sequence %d came before the fleet had moved to %d", max(h.Sequence, s.pointer), sequence)
	}
	return "", ""
}

// judgeBad judges the fleet's own way back from a sequence, which is over when that epoch is.
func judgeBad(sequence int64, h fleet.Head) (Outcome, string) {
	switch {
	case h.Sequence != sequence:
		return RolledBack, "" // the fleet has gone on since
	case h.Automatic() && (h.State.Open() || h.State == fleet.Commit || h.State == fleet.Abort && (h.RetryAt > 0 || h.Again == sequence)):
		return "", ""
	case h.Automatic() && h.State == fleet.Abort:
		return Aborted, fmt.Sprintf("%s; the rollback to %s was aborted too: %s", h.Why, h.Release, h.Reason)
	}
	return RolledBack, h.Why
}

// judgeOurs judges an epoch of the sequence itself.
func judgeOurs(sequence int64, s sight) (Outcome, string) {
	h := s.head
	switch h.State {
	case fleet.Done:
		return Done, h.Reason
	case fleet.Abort:
		switch {
		case h.Held(sequence):
			return Aborted, h.Reason
		case h.Again == sequence: // and is opened next
		case h.RetryAt == 0: // neither held nor tried again: a newer pointer was seen
			return Superseded, h.Reason
		case s.pointer > sequence:
			return Superseded, fmt.Sprintf("sequence %d came after %s", s.pointer, h.Reason)
		}
	}
	return "", ""
}

// watcher follows one sequence and tells the story.
type watcher struct {
	ledger   *fleet.Ledger
	pointer  func(context.Context) int64
	board    *board
	sequence int64
	release  release.ID
	began    time.Time

	seen    sight
	members []fleet.Member
	// What was said last.
	epoch   int64
	state   fleet.EpochState
	waits   string
	told    map[string]bool          // votes of no, by instance and epoch
	printed map[string]*fleet.Output // by those hooks that failed, by instance; nil: none, or shown
	trouble string
}

// follow waits until the rollout ends, the timeout, or the end of ctx, and fills in the result.
func (w *watcher) follow(ctx context.Context, timeout time.Duration, r *Result) {
	w.told, w.printed = map[string]bool{}, map[string]*fleet.Output{}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	w.say("waiting for the fleet")
	var membersAt, pointerAt time.Time
	pointerAt = time.Now()
	for {
		err := w.readHead(waiting)
		now := time.Now()
		if err == nil && !w.ours() && now.Sub(pointerAt) >= pointerEvery {
			w.seen.pointer, pointerAt = max(w.seen.pointer, w.pointer(waiting)), now
		}
		outcome, reason := judge(w.sequence, w.seen)
		if err == nil && (outcome != "" || w.ours() && (now.Sub(membersAt) >= membersEvery || w.isNew())) {
			err, membersAt = w.readMembers(waiting), now
		}
		if waiting.Err() == nil { // else the read was cut short by our own end, which is no trouble of the fleet
			w.tell(err)
		}
		if outcome != "" && err == nil {
			w.finish(r, outcome, reason)
			return
		}
		every := idleEvery
		if w.ours() {
			every = openEvery
		}
		select {
		case <-waiting.Done():
			r.Outcome, r.Reason = TimedOut, fmt.Sprintf("timed out after %v: %s", timeout, w.where())
			if ctx.Err() != nil {
				r.Reason = "interrupted: " + w.where()
			}
			return
		case <-time.After(every):
		}
	}
}

// ours says that an epoch of the sequence is under way.
func (w *watcher) ours() bool {
	h := w.seen.head
	return h.Sequence == w.sequence && (h.State.Open() || h.State == fleet.Commit)
}

// isNew says that the head shows what was not told yet.
func (w *watcher) isNew() bool {
	return w.epoch != w.seen.head.Epoch || w.state != w.seen.head.State
}

func (w *watcher) readHead(ctx context.Context) error {
	h, ok, err := w.ledger.Head(ctx, true)
	if err != nil {
		return err
	}
	w.seen.head, w.seen.hasHead = h, ok
	if h.Sequence == w.sequence && !h.Automatic() && (h.State == fleet.Commit || h.State == fleet.Done) {
		w.seen.committed = true
	}
	return nil
}

func (w *watcher) readMembers(ctx context.Context) error {
	rows, err := w.ledger.Members(ctx)
	if err != nil {
		return err
	}
	w.members = rows
	for _, m := range rows {
		failed := w.failing(m)
		if _, known := w.printed[m.Instance]; known || failed == "" || len(w.printed) == outputsShown {
			continue
		}
		w.printed[m.Instance] = nil
		if o, err := w.ledger.Output(ctx, m.Instance); err == nil && o != nil && o.Release == failed { // else the reason must do
			w.printed[m.Instance] = o
		}
	}
	return nil
}

// outputsShown is of how many instances the output of failed hooks is shown: they nearly always fail alike.
const outputsShown = 3

// failing is the release that an instance votes against, or could not run fleet_once for, or is not well with after the flip, or
// that the fleet goes back from because it was not; "" where it does not fail.
func (w *watcher) failing(m fleet.Member) release.ID {
	h := w.seen.head
	switch {
	case h.Sequence != w.sequence || h.Epoch == 0:
		return ""
	case m.Vote.Epoch == h.Epoch && !m.Vote.Yes || m.Failed == h.Epoch || onceFailed(h, m):
		return h.Release
	case h.Automatic() && (m.Failed == h.Epoch-1 || strings.Contains(h.Why, " "+m.Instance+": ")):
		return w.release
	}
	return ""
}

// onceFailed says that fleet_once failed on a member, for this very coordinator of this epoch.
func onceFailed(h fleet.Head, m fleet.Member) bool {
	return m.Ran.Fence > 0 && m.Ran.Fence == h.Fence && !m.Ran.OK
}

// sayNo says why an instance fails, with the end of what its hook printed where that is why.
func (w *watcher) sayNo(instance string, epoch int64, what, why string) {
	key := fmt.Sprintf("%s %d %s", instance, epoch, what)
	if w.told[key] {
		return
	}
	w.told[key] = true
	w.say("%s %s: %s", instance, what, cmp.Or(why, "no reason given"))
	o := w.printed[instance]
	if o == nil || !strings.Contains(why, "hook "+o.Hook) {
		return
	}
	w.printed[instance] = nil
	for line := range strings.Lines(strings.TrimSpace(o.Text)) {
		w.say("  | %s", strings.TrimRight(line, "\r\n"))
	}
}

// sayLeft says who failed in the epoch that the fleet goes back from. That may be over before anybody has looked; then a row says
// nothing of it any more, but what a hook printed stays.
func (w *watcher) sayLeft(h fleet.Head) {
	for _, m := range w.members {
		o := w.printed[m.Instance]
		switch {
		case m.Failed == h.Epoch-1 && m.Vote.Epoch != h.Epoch: // a vote has a reason of its own
			w.sayNo(m.Instance, m.Failed, "is not well", m.Error)
		case o != nil && o.Release == w.release && strings.Contains(h.Why, "hook "+o.Hook):
			w.sayNo(m.Instance, h.Epoch-1, "is not well", "hook "+o.Hook+" failed")
		}
	}
}

// tell says what changed since the last look. An error is no end: the fleet goes on without us.
func (w *watcher) tell(err error) {
	text := ""
	if err != nil {
		text = said(err)
	}
	if text != w.trouble && text != "" {
		w.say("cannot look at the fleet: %s", text)
	}
	w.trouble = text
	h := w.seen.head
	if err != nil || h.Sequence != w.sequence {
		return
	}
	if h.Epoch != w.epoch {
		w.board.leave()
		if h.Automatic() {
			w.sayLeft(h)
			w.say("%s", h.Why)
			w.say("rolling back to %s", h.Release)
		}
		w.say("epoch %d opened by %s", h.Epoch, h.Coordinator)
		w.epoch, w.state, w.waits = h.Epoch, fleet.Prepare, ""
	}
	w.tellMembers(h)
	if h.State.Open() && h.Waits != "" && h.Waits != w.waits {
		w.waits = h.Waits
		w.say("%s", h.Waits)
	}
	if h.State == w.state {
		return
	}
	was := w.state
	w.state = h.State
	switch h.State {
	case fleet.Commit, fleet.Done: // done may be the first that is seen of it
		if was != fleet.Commit {
			w.say("committed, flipping")
		}
	case fleet.Abort:
		w.say("aborted: %s", h.Reason)
		if !h.Held(h.Sequence) && h.RetryAt > 0 {
			w.say("the fleet tries again in %s", span(max(0, time.Until(time.Unix(h.RetryAt, 0)))))
		}
	}
}

// tellMembers says how far each instance is, and why where one fails.
func (w *watcher) tellMembers(h fleet.Head) {
	var rows []row
	for _, m := range w.members {
		if onceFailed(h, m) {
			w.sayNo(m.Instance, h.Epoch, "failed", m.Ran.Error)
		}
		s := stageOf(h, m, time.Now())
		switch s {
		case "":
			continue
		case isRefusing:
			w.sayNo(m.Instance, h.Epoch, "says no", m.Error)
		case isUnwell:
			w.sayNo(m.Instance, h.Epoch, "is not well", m.Error)
		}
		r := row{instance: printable(m.Instance), stage: s}
		if s == isPreparing {
			r.detail = printable(m.Progress)
		}
		rows = append(rows, r)
	}
	if len(rows) > 0 {
		w.board.show(rows)
	}
}

func (w *watcher) say(format string, args ...any) { w.board.say(format, args...) }

// where says what the wait is for.
func (w *watcher) where() string {
	h := w.seen.head
	switch {
	case w.trouble != "":
		return "the fleet cannot be looked at: " + w.trouble
	case !w.seen.hasHead || h.Sequence != w.sequence:
		return "no agent has opened an epoch for it"
	case h.State == fleet.Abort:
		return "aborted, to be tried again: " + h.Reason
	}
	var waiting []string
	for _, m := range w.members {
		if m.Phase == fleet.Serve && m.Vote.Epoch != h.Epoch {
			waiting = append(waiting, strings.TrimSpace(m.Instance+" "+m.Progress))
		}
	}
	if h.Waits != "" {
		return fmt.Sprintf("epoch %d: %s", h.Epoch, h.Waits)
	}
	if len(waiting) == 0 {
		return fmt.Sprintf("epoch %d is in state %s", h.Epoch, h.State)
	}
	slices.Sort(waiting)
	return fmt.Sprintf("epoch %d waits for %s", h.Epoch, strings.Join(waiting[:min(3, len(waiting))], ", "))
}

// finish fills in the result from what was seen last.
func (w *watcher) finish(r *Result, outcome Outcome, reason string) {
	r.Outcome, r.Reason = outcome, reason
	h := w.seen.head
	if outcome != Done {
		return
	}
	epoch := h.Epoch
	if h.Sequence != w.sequence { // the next epoch is open: these are what it started from
		epoch = h.CommittedEpoch
	}
	r.unhealthy = h.Sequence == w.sequence && h.Good.Sequence != w.sequence
	var first, last int64
	r.Members, r.Without, r.Failed = 0, nil, nil
	for _, m := range w.members {
		switch {
		case m.Active.Epoch == epoch:
			r.Members++
			r.unproven = r.unproven || !m.Proof
			last = max(last, m.Active.At)
			if first == 0 || m.Active.At < first {
				first = m.Active.At
			}
		case m.Phase != fleet.Join && h.Epoch == epoch:
			r.Without = append(r.Without, m.Instance)
			if m.Failed == epoch {
				r.Failed = append(r.Failed, m.Instance)
			}
		}
	}
	slices.Sort(r.Without)
	slices.Sort(r.Failed)
	r.Excluded = len(r.Without)
	r.FlipSpreadMS = last - first
	now := time.Now()
	r.LiveMS = now.Sub(w.began).Milliseconds()
	if at := time.UnixMilli(last); at.After(w.began) && at.Before(now) { // else its clock is another
		r.LiveMS = at.Sub(w.began).Milliseconds()
	}
}
