package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"s3pulldeploy/internal/release"
)

// Options are what a node is made of.
type Options struct {
	Scope                          string
	Instance, Group, Zone, Version string
	Incarnation                    string // fresh for each start of the process
	Ledger                         *Ledger
	Journal                        Journal
	State                          State // as the journal has it
	Clock                          Clock
	Random                         func() float64 // [0, 1): the wait before opening and taking over
	PollInterval                   time.Duration  // between reads of the head while nothing is open
	PrepareTimeout                 time.Duration  // from the opening, or a take-over, to the abort
	LookAgain                      time.Duration  // until a pointer whose release is not complete is looked at again
	Proof                          bool           // settling asks PHP itself: shown in the row
	Log                            *slog.Logger
}

// Node is one member of a fleet: what it knows, promised and does next. It is not safe for concurrent use; one loop
// owns it.
type Node struct {
	o     Options
	log   *slog.Logger
	state State
	now   time.Duration // boot time of this step

	registered, duplicate, leaving bool
	rival                          rival
	phase                          Phase
	row                            Member
	dirty                          bool          // the row has news
	beaten, beatHold               time.Duration // the last beat; no beat before this
	left                           int64         // the epoch in which it stepped out of the quorum
	acked                          Member        // the row as the table last took it

	away bool // the table did not answer in this step: nothing but the beat is asked of it any more

	head               Head
	haveHead, everRead bool
	strong             bool          // the next read of the head is strongly consistent
	strongReads        int           // strong answers so far
	headRead           time.Duration // when it was last read
	headAt             time.Duration // when the head is due
	stood              stand         // how long the head's beat has stood still
	lost               bool
	rows               []Member      // of the last vetting
	vetted             bool          // the rows of the fleet agree with the head: nothing was lost before this agent came
	hintAt             time.Duration // when the pending hint was first seen

	serveMark int // strongReads when phase serve was acknowledged; -1: it was not
	inService bool
	answered  time.Duration // when the table last answered
	answers   bool
	started   time.Duration

	offered   *Note // the newest pointer that was read, not inspected
	inspected *Note // the same with its digest
	openAt    time.Duration
	notes     map[int64]*Note

	held      Commitment // prepared by this process
	broken    int64      // the epoch whose release turned out not to be on the disk after all
	catchup   error      // why the committed release could not be brought up
	retryAt   time.Duration
	inspectAt time.Duration
	settleAt  time.Duration
	flipAt    time.Duration

	coord     *coordination
	sightings map[string]rival // of all rows, over all epochs that this node coordinated
	takeAt    time.Duration

	problems map[string]string
}

type stand struct {
	epoch, fence, beat int64
	since              time.Duration
}

// NewNode makes a node from what survived the last run. A state of another instance or scope (a cloned image) keeps
// nothing but its floor: votes and decisions were not this machine's.
func NewNode(o Options) *Node {
	n := &Node{o: o, log: o.Log, state: o.State, phase: Join, notes: map[int64]*Note{}, sightings: map[string]rival{}, problems: map[string]string{}}
	if n.state.Scope != o.Scope {
		n.state = State{}
	} else if n.state.Instance != o.Instance {
		n.state = State{Floor: n.state.Floor, FloorSum: n.state.FloorSum}
	}
	n.state.Scope, n.state.Instance = o.Scope, o.Instance
	n.now = o.Clock.Boot()
	n.started = n.now
	n.strong, n.serveMark = true, -1
	return n
}

// Task is what the machine should be doing.
type Task int

// The tasks, in the order of a release's life.
const (
	Idle    Task = iota
	Inspect      // find out a pointer's digest, so that an epoch can open for it
	Stage        // bring a release to the disk: download, verify, hooks, sync; durable
	Flip         // point active to it at the given moment
	Settle       // after the flip: hooks, opcache, health check
)

func (t Task) String() string { return [...]string{"idle", "inspect", "stage", "flip", "settle"}[t] }

// Want is the one thing that the machine should be doing now. Work for another Want is to be given up.
type Want struct {
	Task   Task
	Epoch  int64
	Note   Note       // of Inspect and Stage; of Settle as far as it is known
	Commit Commitment // of Stage, Flip and Settle
	// Joining says that Stage and Settle catch up with what the fleet decided earlier.
	Joining bool
	// At is the boot time of the flip.
	At time.Duration
}

// Same says whether w asks for the same work as o.
func (w Want) Same(o Want) bool {
	return w.Task == o.Task && w.Epoch == o.Epoch && w.Commit == o.Commit &&
		(w.Task != Inspect || w.Note.Sequence == o.Note.Sequence)
}

// Poll makes the next step read the head, unless that was done in the last part of the poll interval anyway.
func (n *Node) Poll() {
	if n.o.Clock.Boot()-n.headRead >= n.o.PollInterval*3/4 {
		n.headAt = 0
	}
}

// Step does what is due at the table and says what the machine should be doing, and how soon to step again at the latest.
// It makes a bounded number of bounded requests. Errors are kept for [Node.View] and logged on change.
func (n *Node) Step(ctx context.Context) (Want, time.Duration) {
	n.now = n.o.Clock.Boot()
	n.away = false
	if n.leaving {
		return Want{}, time.Minute
	}
	if n.duplicate && !n.outlived(ctx) {
		return Want{}, n.o.PollInterval
	}
	n.register(ctx)
	if n.registered {
		n.readHead(ctx)
		if n.lost {
			n.coord = nil
		}
		if n.haveHead && !n.lost && !n.away {
			n.coordinate(ctx)
		}
		if !n.lost && !n.away {
			n.open(ctx)
		}
	}
	w := n.member(ctx)
	n.enter(ctx)
	n.beat(ctx)
	return w, n.wake()
}

func (n *Node) register(ctx context.Context) {
	if n.registered {
		return
	}
	n.row.Beat++
	n.compose()
	if !n.note("table", n.o.Ledger.Register(ctx, n.row)) {
		return
	}
	n.touch()
	n.registered, n.vetted, n.strong, n.headAt = true, false, true, 0
	n.acked, n.serveMark, n.dirty = n.row, -1, false
	n.beaten = n.now
	n.log.Info("registered", "instance", n.o.Instance, "incarnation", n.o.Incarnation)
}

// readHead reads the head when it is due, and keeps the newest.
func (n *Node) readHead(ctx context.Context) {
	if n.now < n.headAt {
		return
	}
	strong := n.strong
	n.headRead = n.now
	h, ok, err := n.o.Ledger.Head(ctx, strong && weak != "M6")
	n.headAt = n.now + n.headEvery()
	if !n.note("table", err) {
		return
	}
	n.touch()
	n.observe(h, ok, strong)
	if strong || !n.strong { // else observe asks for a strong read at once
		n.headAt = n.now + n.headEvery()
	}
}

// observe takes an answer about the head. An older one than was seen is ignored (I15); if a strong read insists, the
// table was lost or restored.
func (n *Node) observe(h Head, ok, strong bool) {
	older := n.haveHead && (!ok || h.Older(n.head)) || h.Epoch < n.state.Epoch
	if !strong && n.haveHead && ok {
		older = older || h.stale(n.head)
	}
	if strong {
		n.everRead, n.lost, n.strong = true, older, older
		n.strongReads++
		n.problem("head lost", older, fmt.Sprintf(
			"head lost: the table's head is at epoch %d, the fleet has seen a later one (here: %d); push -init mends it", h.Epoch, n.state.Epoch))
	} else if older {
		n.strong, n.headAt = true, 0
	}
	if !ok || older {
		return
	}
	if h.State != n.head.State || h.Epoch != n.head.Epoch {
		n.log.Info("head", "epoch", h.Epoch, "state", string(h.State), "release", string(h.Release), "reason", h.Reason)
		n.openAt = 0
		n.dirty = n.dirty || h.Epoch != n.head.Epoch // whoever was taken for silent shows that it lives
	}
	if at := (stand{h.Epoch, h.Fence, h.Beat, 0}); at != (stand{n.stood.epoch, n.stood.fence, n.stood.beat, 0}) {
		at.since = n.o.Clock.Boot()
		n.stood, n.takeAt = at, 0
	}
	if h.Hint > n.head.Hint {
		n.hintAt = n.now
	}
	n.head, n.haveHead = h, true
	n.remember(h)
}

// remember keeps the newest epoch and the bad sequences durably; a save that fails is made up for by the next.
func (n *Node) remember(h Head) {
	news := h.Epoch > n.state.Epoch
	n.state.Epoch = max(n.state.Epoch, h.Epoch)
	for _, s := range h.Bad {
		if !contains(n.state.Bad, s) {
			n.state.Bad, news = append(n.state.Bad, s), true
		}
	}
	if news {
		_ = n.save()
	}
}

// vet compares the head with what all members report, before this node relies on it for the first time and before it opens
// an epoch: a row that knows a later epoch means that the table was lost or restored.
func (n *Node) vet(ctx context.Context) bool {
	rows, err := n.o.Ledger.Members(ctx)
	if !n.note("table", err) {
		return false
	}
	newest, who := newestOf(rows)
	if newest > n.head.Epoch { // or the head went on since it was read
		h, ok, err := n.o.Ledger.Head(ctx, true)
		if !n.note("table", err) {
			return false
		}
		n.observe(h, ok, true)
		if newest > h.Epoch {
			n.log.Error("head lost", "epoch", h.Epoch, "reported", newest, "by", who)
			n.state.Epoch = newest // what this agent knows of, too, from now on
			n.observe(h, ok, true)
			return false
		}
	}
	n.vetted, n.rows = true, rows
	return true
}

func newestOf(rows []Member) (epoch int64, who string) {
	for _, m := range rows {
		if e := m.Newest(); e > epoch {
			epoch, who = e, m.Instance
		}
	}
	return epoch, who
}

// Offer takes the pointer as it was read, with S3's Date (zero when unknown). A pointer that must not be acted on is an
// error, and changes nothing.
func (n *Node) Offer(text []byte, date time.Time) error {
	note, err := NewNote(text)
	if err != nil {
		return err
	}
	sum := hexSum(text)
	if date.IsZero() {
		date = n.o.Clock.Now()
	}
	p := note.Pointer
	switch {
	case p.Scope != "" && p.Scope != n.o.Scope:
		return fmt.Errorf("pointer is of scope %q, not of %q", p.Scope, n.o.Scope)
	case p.Sequence < n.state.Floor:
		return fmt.Errorf("pointer of sequence %d is older than %d, which was seen before: %w", p.Sequence, n.state.Floor, ErrStale)
	case p.Sequence == n.state.Floor && n.state.FloorSum != "" && sum != n.state.FloorSum:
		return fmt.Errorf("pointer of sequence %d has other contents than before: %w", p.Sequence, ErrEquivocation)
	case p.Sequence > date.Add(maxAhead).Unix():
		return fmt.Errorf("pointer of sequence %d is more than %v ahead of %s", p.Sequence, maxAhead, date.UTC().Format(time.RFC3339))
	}
	if p.Sequence > n.state.Floor {
		was, wasSum := n.state.Floor, n.state.FloorSum
		n.state.Floor, n.state.FloorSum = p.Sequence, sum
		if err := n.save(); err != nil {
			n.state.Floor, n.state.FloorSum = was, wasSum
			return err
		}
	}
	if n.offered == nil || n.offered.Sequence != note.Sequence {
		n.offered, n.inspected, n.openAt, n.inspectAt = &note, nil, 0, 0
		n.note("pointer", nil) // what was wrong with the one before
	}
	return nil
}

// ErrStale is a pointer below the floor: a replay, or a pusher whose clock is behind.
var ErrStale = errors.New("stale pointer")

// PointerWanted says that the head hints at a newer pointer than was read.
func (n *Node) PointerWanted() bool {
	return n.haveHead && n.head.Hint > n.state.Floor && n.head.Hint > n.head.Sequence
}

// Opening says that this node is about to open an epoch for a pointer that it read.
func (n *Node) Opening() bool { return n.offered != nil && !n.lost && n.mayOpen(*n.offered) }

// Empty says that nothing was ever committed here or in the fleet: a first push is waited for.
func (n *Node) Empty() bool { return n.head.CommittedEpoch == 0 && n.state.Decision.Epoch == 0 }

// target is what the fleet has decided to run.
func (n *Node) target() Commitment {
	h := n.head
	if h.State == Commit || h.State == Done {
		return Commitment{h.Epoch, h.Sequence, h.Release, h.Digest}
	}
	e, t := h.Committed()
	return Commitment{Epoch: e, Sequence: t.Sequence, Release: t.Release}
}

// enter moves the member into service: phase serve first, then a strong read of the head that agrees (I8).
func (n *Node) enter(ctx context.Context) {
	if !n.registered || !n.everRead || n.lost {
		return
	}
	t := n.target()
	current := n.state.Flipped.Epoch >= t.Epoch && n.state.Settled >= t.Epoch
	if (n.phase == Join || n.phase == Out && !n.head.State.Open()) && current {
		n.setPhase(Serve)
	}
	if n.phase != Serve || n.inService || n.serveMark < 0 || n.strongReads <= n.serveMark {
		return
	}
	votedHere := n.acked.voted(n.head, true)
	if current && !n.vetted && weak != "M6" && (n.away || !n.vet(ctx)) {
		return
	}
	if current && (!n.head.State.Open() || votedHere || weak == "M1") {
		n.inService = true
		n.log.Info("in service", "epoch", n.state.Flipped.Epoch, "release", string(n.state.Flipped.Release))
	}
}

func (n *Node) setPhase(p Phase) {
	if n.phase == p {
		return
	}
	n.log.Info("phase", "from", string(n.phase), "to", string(p))
	if p == Out && n.phase == Serve && n.head.State.Open() {
		n.left = n.head.Epoch
	}
	n.phase, n.dirty, n.serveMark = p, true, -1
	if p != Serve {
		n.inService = false
	}
}

// compose brings the row up to date with what is known.
func (n *Node) compose() {
	r := &n.row
	r.Instance, r.Group, r.Zone, r.Version = n.o.Instance, n.o.Group, n.o.Zone, n.o.Version
	r.Incarnation, r.Phase, r.Vote = n.o.Incarnation, n.phase, n.state.Vote
	r.Proof, r.Epoch, r.Left = n.o.Proof, n.state.Epoch, n.left
	r.Failed, r.Error, r.Seen = n.state.Failed, n.state.Error, n.o.Clock.Now().Unix()
	r.Active = Active{} // between the flip and its proof nothing is claimed
	if f := n.state.Flipped; f.Epoch > 0 && n.state.Settled == f.Epoch {
		r.Active = Active{Epoch: f.Epoch, Release: f.Release, At: n.state.FlippedAt}
	}
}

// beat writes the row when it has news or is due.
func (n *Node) beat(ctx context.Context) {
	if !n.registered || n.now < n.beatHold || !n.dirty && n.now < n.beaten+n.beatEvery() {
		return
	}
	n.row.Beat++
	n.compose()
	err := n.o.Ledger.Beat(ctx, n.row)
	switch {
	case errors.Is(err, ErrDuplicate):
		n.duplicate, n.coord, n.rival = true, nil, rival{}
		n.setPhase(Join)
		n.problem("duplicate", true, err.Error())
		return
	case errors.Is(err, ErrGone):
		n.log.Warn("row gone, registering again", "instance", n.o.Instance)
		n.registered, n.coord = false, nil
		n.setPhase(Join)
		return
	case !n.note("table", err):
		n.beatHold = n.now + time.Second
		return
	}
	n.touch()
	n.acked, n.dirty, n.beaten = n.row, false, n.now
	if n.phase == Serve && n.serveMark < 0 {
		n.serveMark = n.strongReads
		n.strong, n.headAt = true, 0
		n.inService = weak == "M2" // the head was read before phase serve was written: too early
	}
}

// rival is the other incarnation that took this instance's row.
type rival struct {
	incarnation string
	beat        int64
	since       time.Duration
}

// outlived says whether the other incarnation of a duplicate id is gone: its row is, or stood still through the slowest
// beat and a lease. It may never have lived: a registration of one's own earlier life that arrived late looks the same.
func (n *Node) outlived(ctx context.Context) bool {
	m, err := n.o.Ledger.Row(ctx, n.o.Instance)
	if !n.note("table", err) {
		return false
	}
	n.touch()
	if m != nil {
		if r := n.rival; r.incarnation != m.Incarnation || r.beat != m.Beat {
			n.rival = rival{m.Incarnation, m.Beat, n.o.Clock.Boot()}
			return false
		}
		if n.now-n.rival.since < beatIdle+silentSpan {
			return false
		}
	}
	n.log.Warn("the other agent of this id is silent, registering again", "instance", n.o.Instance)
	n.duplicate, n.registered = false, false
	n.problem("duplicate", false, "")
	return true
}

func (n *Node) beatEvery() time.Duration {
	if n.haveHead && (n.head.State.Open() || n.head.State == Commit) {
		return beatOpen
	}
	return beatIdle
}

// headEvery is H while an epoch is open or a hint says that one will be, else the poll interval.
func (n *Node) headEvery() time.Duration {
	if n.haveHead && n.head.State.Open() || n.PointerWanted() && n.now-n.hintAt < 30*time.Second {
		return min(n.o.PollInterval, HeadInterval(int(n.head.Members)))
	}
	return n.o.PollInterval
}

// wake is how long the loop may sleep.
func (n *Node) wake() time.Duration {
	next := n.now + n.o.PollInterval
	if n.registered {
		beat := n.beaten + n.beatEvery()
		if n.dirty {
			beat = n.now
		}
		next = min(next, n.headAt, max(beat, n.beatHold))
	}
	for _, at := range []time.Duration{n.openAt, n.takeAt} {
		if at > 0 && n.registered && !n.lost {
			next = min(next, at)
		}
	}
	if n.coord != nil && n.registered && !n.lost {
		next = min(next, n.coord.sweepAt, n.coord.renewAt)
	}
	return max(next-n.o.Clock.Boot(), 0)
}

// note keeps an error of a part until it is over, and says whether there was none. That the loop ends is no problem.
func (n *Node) note(part string, err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	text := ""
	if err != nil {
		text = err.Error()
		n.away = n.away || errors.Is(err, ErrUnavailable)
	}
	n.problem(part, err != nil, text)
	return err == nil
}

// problem shows or clears a problem; it is logged when it changes.
func (n *Node) problem(part string, on bool, text string) {
	was := n.problems[part]
	switch {
	case on && was != text:
		n.problems[part] = text
		n.log.Warn("problem", "part", part, "error", text)
	case !on && was != "":
		delete(n.problems, part)
		n.log.Info("problem over", "part", part)
	}
}

func (n *Node) touch() { n.answered, n.answers = n.o.Clock.Boot(), true }

func (n *Node) save() error {
	if err := n.o.Journal.Save(n.state); err != nil {
		n.note("state", err)
		return fmt.Errorf("save state: %w", err)
	}
	n.note("state", nil)
	return nil
}

// Leave writes phase leaving, or removes the row when the machine goes, and ends the node.
func (n *Node) Leave(ctx context.Context, remove bool) error {
	n.leaving, n.inService = true, false
	if !n.registered || n.duplicate {
		return nil
	}
	n.phase = Leaving
	n.row.Beat++
	n.compose()
	if remove {
		return n.o.Ledger.Remove(ctx, n.row)
	}
	return n.o.Ledger.Beat(ctx, n.row)
}

// Progress is shown in the member's row at its next beat.
func (n *Node) Progress(text string) { n.row.Progress = text }

// View is what the node shows about itself.
type View struct {
	Instance, Group string
	Phase           Phase
	Head            Head
	HaveHead        bool
	Flipped         Commitment
	Settled         int64
	Vote            Vote
	Error           string
	Problems        map[string]string
	// Ready: in service, or nothing was ever committed and the fleet agrees. Isolated: it serves from its disk, since
	// the table has not answered.
	Ready, Isolated, Waiting, Duplicate, Coordinates bool
	// Behind says that the fleet committed to something that this instance does not serve. Pending says that it is only
	// about to: it is in service, holds the release, and neither the flip nor the check after it has failed.
	Behind, Pending bool
	Target          Commitment
}

// View returns a copy of what the node knows.
func (n *Node) View() View {
	v := View{
		Instance: n.o.Instance, Group: n.o.Group, Phase: n.phase, Head: n.head, HaveHead: n.haveHead,
		Flipped: n.state.Flipped, Settled: n.state.Settled, Vote: n.state.Vote, Error: n.state.Error,
		Problems: map[string]string{}, Duplicate: n.duplicate, Coordinates: n.coord != nil, Target: n.target(),
	}
	for k, t := range n.problems {
		v.Problems[k] = t
	}
	silent := n.o.Clock.Boot() - max(n.answered, n.started)
	onDisk := n.state.Decision.Epoch > 0 && n.state.Flipped == n.state.Decision
	v.Isolated = silent >= isolatedAfter && onDisk && !n.duplicate
	v.Ready = n.inService || v.Isolated
	v.Waiting = n.inService && n.Empty()
	known := n.state.Decision
	if n.haveHead && v.Target.Epoch > known.Epoch {
		known = v.Target
	}
	v.Behind = known.Epoch > 0 && (n.state.Flipped.Epoch < known.Epoch || n.state.Settled < known.Epoch)
	v.Pending = v.Behind && n.inService && n.holds(known) && n.state.Failed != known.Epoch
	return v
}

// State returns what the node holds durable, or is about to.
func (n *Node) State() State { return n.state }

// Keep lists the releases that must stay on the disk: decided, flipped, voted for, named by the head.
func (n *Node) Keep() []release.ID {
	return []release.ID{
		n.state.Decision.Release, n.state.Flipped.Release, n.state.Vote.Release,
		n.head.Release, n.head.CommittedRelease, n.head.Good.Release,
	}
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
