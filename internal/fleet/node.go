package fleet

import (
	"context"
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
	Random                         func() float64   // [0, 1): the wait before opening and taking over
	PollInterval                   time.Duration    // between reads of the head while nothing is open
	PrepareTimeout                 time.Duration    // from the opening, or a take-over, to the abort
	LookAgain                      time.Duration    // until a pointer whose release is not complete is looked at again
	Proof                          bool             // settling asks PHP itself: shown in the row
	Once                           bool             // this machine has a fleet_once hook
	Rollback                       bool             // a failed check here counts for going back to the good release
	TableDate                      func() time.Time // the time by the table's clock, zero when it never said; nil: never
	// Told is called, in the loop, with the log of an epoch that this node was the one to write, and the pointer of its release
	// as far as that is at hand. It must not wait. Nil: nobody is told.
	Told func(Log, release.Pointer)
	Log  *slog.Logger
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
	headFailed         int           // reads in a row
	stood              stand         // how long the head's beat has stood still
	lost               bool
	rows               []Member      // of the last vetting
	vetted             bool          // the rows of the fleet agree with the head: nothing was lost before this agent came
	hintAt             time.Duration // when the pending hint was first seen

	serveMark int // strongReads when phase serve was acknowledged; -1: it was not
	inService bool
	answered  time.Duration // when the table last answered
	started   time.Duration

	refused   string // why the pointer that was read last was not taken
	offered   *Note  // the newest pointer that was read, not inspected
	inspected *Note  // the same with its digest
	openAt    time.Duration
	notes     map[int64]*Note

	held      Commitment // prepared by this process
	broken    int64      // the epoch whose release turned out not to be on the disk after all
	unsaved   int64      // the epoch whose commit could not be saved at the last try
	catchup   error      // why the committed release could not be brought up
	retryAt   time.Duration
	voteAt    time.Duration // when a vote that could not be made durable is tried again
	inspectAt time.Duration
	settleAt  time.Duration
	flipAt    time.Duration

	ran Ran // of this process

	coord     *coordination
	sightings map[string]rival // of all rows, over all epochs that this node coordinated
	takeAt    time.Duration
	thawAt    time.Duration

	problems map[string]string
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
	Once         // the fleet_once hook, for all, while the old code serves
)

func (t Task) String() string {
	return [...]string{"idle", "inspect", "stage", "flip", "settle", "fleet_once"}[t]
}

// Want is the one thing that the machine should be doing now. Work for another Want is to be given up.
type Want struct {
	Task   Task
	Epoch  int64
	Note   Note       // of Inspect and Stage; of Settle as far as it is known
	Commit Commitment // of Stage, Flip and Settle
	// Joining says that Stage and Settle catch up with what the fleet decided earlier.
	Joining bool
	// Back says that Settle follows a return from a wave that was aborted.
	Back bool
	// Fence is the coordinator's that Once was asked for under.
	Fence int64
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
		n.doubt()
		if n.lost {
			n.coord = nil
		}
		if n.haveHead && !n.lost && !n.away {
			n.thaw(ctx)
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
	for _, at := range []time.Duration{n.openAt, n.takeAt, n.thawAt} {
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

func (n *Node) touch() { n.answered = n.o.Clock.Boot() }

func (n *Node) save() error {
	if err := n.o.Journal.Save(n.state); err != nil {
		n.note("state", err)
		return fmt.Errorf("save state: %w", err)
	}
	n.note("state", nil)
	return nil
}
