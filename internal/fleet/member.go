package fleet

import (
	"crypto/sha256"
	"fmt"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
)

// Phase is a member's own word on whether it takes part.
type Phase string

// The phases of a member.
const (
	Join    Phase = "join"    // coming up; not waited for
	Serve   Phase = "serve"   // in the quorum
	Out     Phase = "out"     // unfit: said no for a reason of its machine
	Leaving Phase = "leaving" // going, or its agent is
)

// Why a vote is no.
const (
	AboutRelease = "release" // digest, signature, manifest, hook: the epoch aborts, for good
	AboutMachine = "machine" // disk, I/O, S3 or FPM unreachable: this member steps out
)

// Vote is a member's promise about one epoch: yes means "I hold this release, complete, verified and durable".
type Vote struct {
	Epoch   int64      `json:"epoch"`
	Release release.ID `json:"release"`
	Yes     bool       `json:"yes"`
	Kind    string     `json:"kind,omitempty"` // of a no: AboutRelease or AboutMachine
}

// Active is what a member serves: flipped, durable and healthy. At is the flip's time in Unix milliseconds
// by its own clock, for people.
type Active struct {
	Epoch   int64
	Release release.ID
	At      int64
}

// Member is one instance's row.
type Member struct {
	Instance, Group, Zone, Version string
	Incarnation                    string // 16 random bytes, hex, for each start of the process
	Beat                           int64
	Phase                          Phase
	Progress                       string
	Vote                           Vote
	Active                         Active
	Failed                         int64 // the epoch whose flip or health check failed here
	Epoch                          int64 // the newest epoch it knows of
	Left                           int64 // the epoch in which it stepped out of the quorum
	Missed                         int64 // decided epochs through which the row stood still
	MissedEpoch                    int64 // the last epoch that was counted in Missed
	Error                          string
	Packed                         bool // it reads releases of the packed layout
	Once                           bool // it has a fleet_once hook
	Ran                            Ran
	Rollback                       bool // a failed check here counts for going back to the good release
	Proof                          bool // PHP itself is asked after each flip
	Schema                         int64
	Seen                           int64 // Unix seconds of the last beat by its own clock, for people
}

// Lost says whether the member was silent for so long that nobody asks about it any more.
func (m Member) Lost() bool { return m.Missed >= lostAfter }

// Newest is the newest epoch that the row tells of: a head below it was lost or restored.
func (m Member) Newest() int64 { return max(m.Epoch, m.Vote.Epoch, m.Active.Epoch, m.Failed) }

// voted says whether the row has a vote of this kind for the head's epoch and release.
func (m Member) voted(h Head, yes bool) bool {
	return (m.Vote.Epoch == h.Epoch || weak.Rule == "M4") && m.Vote.Release == h.Release && m.Vote.Yes == yes
}

// attributes are what the member itself writes at every beat, besides the beat.
func (m Member) attributes() Item {
	return Item{
		"instance": m.Instance, "group": m.Group, "zone": m.Zone, "version": m.Version,
		"phase": string(m.Phase), "progress": cut(m.Progress), "error": cut(m.Error),
		"vote":   Item{"epoch": m.Vote.Epoch, "release": string(m.Vote.Release), "yes": m.Vote.Yes, "kind": m.Vote.Kind},
		"active": Item{"epoch": m.Active.Epoch, "release": string(m.Active.Release), "at": m.Active.At},
		"failed": m.Failed, "epoch": m.Epoch, "left": m.Left, "missed": int64(0), "missed_epoch": int64(0), "seen": m.Seen, "proof": m.Proof, "packed": true, "rollback": m.Rollback,
		"once": m.Once, "ran": Item{"fence": m.Ran.Fence, "ok": m.Ran.OK, "error": cut(m.Ran.Error)}, "schema": int64(Schema),
	}
}

func decodeMember(it Item) (Member, error) {
	d := decoder{item: it, what: "member"}
	if id, ok := it["instance"].(string); ok {
		d.what = fmt.Sprintf("member %q", id)
	}
	m := Member{
		Instance: d.str("instance"), Group: d.str("group"), Zone: d.str("zone"), Version: d.str("version"),
		Incarnation: d.str("incarnation"), Beat: d.num("beat"), Phase: Phase(d.str("phase")),
		Progress: d.str("progress"), Failed: d.num("failed"), Missed: d.num("missed"),
		MissedEpoch: d.num("missed_epoch"), Error: d.str("error"), Seen: d.num("seen"),
		Proof: get[bool](&d, "proof"), Packed: get[bool](&d, "packed"), Rollback: get[bool](&d, "rollback"), Once: get[bool](&d, "once"), Epoch: d.num("epoch"), Left: d.num("left"), Schema: d.num("schema"),
	}
	v, a := d.sub("vote"), d.sub("active")
	m.Vote = Vote{Epoch: v.num("epoch"), Release: release.ID(v.str("release")), Yes: get[bool](&v, "yes"), Kind: v.str("kind")}
	m.Active = Active{Epoch: a.num("epoch"), Release: release.ID(a.str("release")), At: a.num("at")}
	r := d.sub("ran")
	m.Ran = Ran{Fence: r.num("fence"), OK: get[bool](&r, "ok"), Error: r.str("error")}
	return m, firstOf(d.err, firstOf(v.err, firstOf(a.err, r.err)))
}

// memberPartition is the partition of an instance's row: rows are spread so that no key gets hot.
func memberPartition(scope, instance string) string {
	sum := sha256.Sum256([]byte(instance))
	return partitionName(scope, int(sum[0]%partitions))
}

func partitionName(scope string, i int) string { return fmt.Sprintf("%s#m%02d", scope, i) }
