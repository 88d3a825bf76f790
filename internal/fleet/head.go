package fleet

import (
	"fmt"

	"s3pulldeploy/internal/release"
)

// EpochState is where an epoch stands.
type EpochState string

// The states of the head. Prepare and wave are open; commit is decided but not over; abort and done are over.
const (
	Prepare EpochState = "prepare"
	Wave    EpochState = "wave"
	Commit  EpochState = "commit"
	Abort   EpochState = "abort"
	Done    EpochState = "done"
)

// Open says whether the epoch is undecided.
func (s EpochState) Open() bool { return s == Prepare || s == Wave }

// rank orders the states of one epoch: a head never goes back.
func (s EpochState) rank() int {
	switch s {
	case Prepare:
		return 0
	case Wave:
		return 1
	case Commit, Abort:
		return 2
	case Done:
		return 3
	}
	return -1
}

// Head is the item that every condition names; PROTOCOL "Items" is its source. Times are by the writer's wall
// clock and for advice only.
type Head struct {
	Epoch    int64
	State    EpochState
	Kind     string // "" or "rollback"
	Sequence int64
	Release  release.ID
	Digest   string
	// Source is the sequence whose note tells of the release where it is not Sequence: in a rollback that the fleet began by
	// itself, which goes back to the release of an earlier push and keeps the sequence of the one that failed.
	Source int64

	CommittedEpoch    int64
	CommittedSequence int64
	CommittedSource   int64
	CommittedRelease  release.ID
	Good              Target  // the last epoch that ended healthy
	Before            Target  // the good one before that, of another release: what a rollback by hand goes to
	Bad               []int64 // sequences that were rolled back, the last few
	Why               string  // why the last of Bad was

	Coordinator string
	Fence, Beat int64

	// Cutoff is the bound of the wave under way, see [Head.Reaches]; Wave its number, from 1 on; WaveGroup whom it is for. Waits says
	// what the coordinator of an open epoch waits for, for people.
	Cutoff, Wave int64
	WaveGroup    string
	Waits        string
	FlipDelay    int64 // milliseconds from the commit to the flip
	FlipAt       int64 // Unix milliseconds by the coordinator's clock

	Tries   int64 // aborts of this sequence so far
	RetryAt int64 // Unix seconds
	Once    string

	Members, Excluded int64
	// Reason says why the epoch aborted, or who failed; Superseded is 1 when the epoch before was superseded.
	Reason     string
	Superseded int64

	Hint, Hold, Again int64 // sequences, set by push
	Approved          int64
	Frozen            *Freeze

	Token  string
	Schema int64
}

// Target names a release and the sequence it was published under.
type Target struct {
	Release  release.ID
	Sequence int64
}

// Freeze stops new epochs; Until is Unix seconds, 0 for ever.
type Freeze struct {
	By, Why string
	Until   int64
}

// Decided says whether the current epoch is over for the next to open: commit, abort or done.
func (h Head) Decided() bool { return h.State == Commit || h.State == Abort || h.State == Done }

// Committed is what the fleet should be running; its epoch is 0 when nothing was ever committed. The digest is in the note.
func (h Head) Committed() Commitment {
	return Commitment{Epoch: h.CommittedEpoch, Sequence: h.CommittedSequence, Source: h.CommittedSource, Release: h.CommittedRelease}
}

// Proposed is what the epoch is about.
func (h Head) Proposed() Commitment {
	return Commitment{Epoch: h.Epoch, Sequence: h.Sequence, Source: h.Source, Release: h.Release, Digest: h.Digest, Kind: h.Kind}
}

// Automatic says that the epoch is a rollback that the fleet began by itself.
func (h Head) Automatic() bool { return h.Source > 0 }

// IsBad says whether a sequence was rolled back.
func (h Head) IsBad(sequence int64) bool { return contains(h.Bad, sequence) }

// Held says whether a person, or a failure, keeps a sequence from being opened: a hold bars what came before it too, which was held
// before or is as stale as a replay. `push -retry` lets through the one that it names, and leaves the others held. The fleet's own way back
// from a sequence is held only by a hold of that very one: what came after it is held, and what is live still fails.
func (h Head) Held(sequence int64) bool {
	if h.Automatic() && h.Sequence == sequence {
		return h.byHand()
	}
	return sequence <= h.Hold && h.Again != sequence
}

// Older says whether h is from before o: by epoch, fence and state, none of which ever goes back.
func (h Head) Older(o Head) bool {
	if h.Epoch != o.Epoch {
		return h.Epoch < o.Epoch
	}
	if h.Fence != o.Fence {
		return h.Fence < o.Fence
	}
	return h.State.rank() < o.State.rank()
}

// goodAfter are the attributes that change when h's epoch ended healthy.
func (h Head) goodAfter() Item {
	set := Item{"good": Item{"release": string(h.Release), "sequence": h.Proposed().Note()}}
	if h.Good.Release != "" && h.Good.Release != h.Release {
		set["before"] = Item{"release": string(h.Good.Release), "sequence": h.Good.Sequence}
	}
	return set
}

// stale says whether an eventually consistent read shows less than o did: an older head, or an older beat.
func (h Head) stale(o Head) bool {
	return h.Older(o) || h.Epoch == o.Epoch && h.Fence == o.Fence && h.Beat < o.Beat
}

func decodeHead(it Item) (Head, error) {
	d := decoder{item: it, what: "head"}
	h := Head{
		Epoch: d.num("epoch"), State: EpochState(d.str("state")), Kind: d.str("kind"),
		Sequence: d.num("sequence"), Release: release.ID(d.str("release")), Digest: d.str("digest"),
		CommittedEpoch: d.num("committed_epoch"), CommittedSequence: d.num("committed_sequence"),
		CommittedRelease: release.ID(d.str("committed_release")), CommittedSource: d.num("committed_source"),
		Source: d.num("source"), Bad: d.nums("bad"), Why: d.str("why"),
		Coordinator: d.str("coordinator"), Fence: d.num("fence"), Beat: d.num("beat"),
		Cutoff: d.num("cutoff"), Wave: d.num("wave"), WaveGroup: d.str("wave_group"), Waits: d.str("waits"), FlipDelay: d.num("flip_delay"), FlipAt: d.num("flip_at"),
		Tries: d.num("tries"), RetryAt: d.num("retry_at"), Once: d.str("once"),
		Members: d.num("members"), Excluded: d.num("excluded"), Reason: d.str("reason"), Superseded: d.num("superseded"),
		Hint: d.num("hint"), Hold: d.num("hold"), Again: d.num("again"), Approved: d.num("approved"),
		Token: d.str("token"), Schema: d.num("schema"),
	}
	if g := d.sub("good"); g.item != nil {
		h.Good = Target{release.ID(g.str("release")), g.num("sequence")}
		d.err = firstOf(d.err, g.err)
	}
	if b := d.sub("before"); b.item != nil {
		h.Before = Target{release.ID(b.str("release")), b.num("sequence")}
		d.err = firstOf(d.err, b.err)
	}
	if f := d.sub("frozen"); f.item != nil {
		h.Frozen = &Freeze{By: f.str("by"), Why: f.str("why"), Until: f.num("until")}
		d.err = firstOf(d.err, f.err)
	}
	if d.err == nil && h.State.rank() < 0 {
		d.err = fmt.Errorf("head: unknown state %q", h.State)
	}
	if h.Schema > Schema {
		d.err = fmt.Errorf("head has schema %d: %w", h.Schema, ErrSchema)
	}
	return h, d.err
}

// decoder reads typed attributes of an item and remembers the first that has the wrong type.
type decoder struct {
	item Item
	what string
	err  error
}

func get[T any](d *decoder, attr string) T {
	var zero T
	v, ok := d.item[attr]
	if !ok {
		return zero
	}
	t, ok := v.(T)
	if !ok {
		d.err = firstOf(d.err, fmt.Errorf("%s: attribute %s is a %T, not a %T", d.what, attr, v, zero))
	}
	return t
}

func (d *decoder) num(attr string) int64  { return get[int64](d, attr) }
func (d *decoder) str(attr string) string { return get[string](d, attr) }

func (d *decoder) nums(attr string) []int64 {
	var out []int64
	for _, v := range get[[]Value](d, attr) {
		n, ok := v.(int64)
		if !ok {
			d.err = firstOf(d.err, fmt.Errorf("%s: attribute %s has a %T among its numbers", d.what, attr, v))
			continue
		}
		out = append(out, n)
	}
	return out
}

func (d *decoder) sub(attr string) decoder {
	return decoder{item: get[Item](d, attr), what: d.what + "." + attr}
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func contains(list []int64, n int64) bool {
	for _, v := range list {
		if v == n {
			return true
		}
	}
	return false
}
