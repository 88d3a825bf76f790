// Package fleet is the epoch protocol: how the instances of one site move to a release together, or not at all.
//
// Parties. Every instance of a site is a member with one row in the table. One of them, whoever opened
// the current epoch or took it over, is its coordinator. There is no server: only conditional writes to
// single items of one table ([Table]).
//
// Objects. The head is the one item that all conditions name; a note keeps the bytes of the pointer that an epoch
// runs on; a member row is written by its own instance; the epoch log is for people. [Ledger] has the
// writes, one method for each, with the condition in its comment.
//
// Order. Open puts the note before the head. A member persists its vote before it sends it, persists a commit
// before it flips, and reports active only after a durable flip. The coordinator sweeps the member rows only after
// the epoch was opened, and decides by one write conditioned on epoch, state, release, digest and
// fence: so an epoch has at most one decision, whoever writes it.
//
// Trust. Nothing here trusts another machine's clock. Peers are judged silent by a beat that stands still
// over a full lease of the observer's own boot clock ([Silence]). flip_at is advice, clamped to flip_delay.
//
// A pointer is believed as far as [Ledger.Keys] verify it, in the bucket as in a note: who can write to the table can
// disturb, and choose among releases that were signed for this scope, but bring in nothing else.
//
// Crash points. Every step may be repeated: each write carries a token, and a write whose outcome is unknown
// is resolved by finding one's own token in the item. [State] is what survives a restart.
//
// [Node] puts it together, one step at a time and without goroutines of its own: the agent calls
// [Node.Step], gets back what the machine should be doing ([Want]), and reports what came of it.
// docs/protocol.md tells the story at length.
package fleet

import "time"

// The protocol's times. Leases are judged on the observer's boot clock.
const (
	// Lease is how long a member may be silent; it is called dead after 1.1 leases.
	Lease = 30 * time.Second
	// silentSpan and silentSweeps: unchanged over at least four clean sweeps that span 1.1 leases.
	silentSpan   = Lease + Lease/10
	silentSweeps = 4
	// takeOverAfter is how long the head's beat must stand still before another agent takes over.
	takeOverAfter = 16500 * time.Millisecond
	// renewEvery is the coordinator's beat on the head.
	renewEvery = 5 * time.Second
	// beatOpen and beatIdle are a member's beats with and without an open epoch.
	beatOpen = 5 * time.Second
	beatIdle = 60 * time.Second
	// isolatedAfter: so long without an answer from the table at start, an instance serves from its disk.
	isolatedAfter = 10 * time.Second
	// badKept is how many sequences that were rolled back the head remembers; a member remembers twice as many.
	badKept = 8
	// lostAfter is the number of decided epochs a member stays silent through before it is lost.
	lostAfter = 4
	// rowTTL and logTTL: how long the table keeps the row of a lost member, and an epoch's log.
	rowTTL = 7 * 24 * time.Hour
	logTTL = 90 * 24 * time.Hour
	// maxAhead is how far a pointer's sequence may lie ahead of S3's Date.
	maxAhead = 24 * time.Hour
	// textLimit cuts texts of the head and of member rows, in bytes, so that both stay under 1 KB.
	textLimit = 200
	// Schema is the version of the items; an agent that meets a higher one stops acting.
	Schema = 1
	// partitions is the number of partitions that a scope's member rows are spread over.
	partitions = 16
)

// retryDelays are the waits before an aborted epoch is tried again; after the last the sequence is held.
var retryDelays = [...]time.Duration{30 * time.Second, 2 * time.Minute, 10 * time.Minute}

// HeadInterval is H, how often members read the head while an epoch is open in a fleet of n.
func HeadInterval(n int) time.Duration {
	return max(250*time.Millisecond, time.Duration(n)*time.Second/2000)
}

// FlipDelay is the time from a commit to the flip: all members read the head at least twice in it.
func FlipDelay(n int) time.Duration {
	return max(time.Second, 4*HeadInterval(n))
}

// spread is the longest random wait before opening or taking over in a fleet of n.
func spread(n int) time.Duration { return time.Duration(n) * time.Second / 500 }

// Clock is the time a node lives by: Boot never jumps and counts suspended time (CLOCK_BOOTTIME), Now is the
// wall clock, for what people read, for expiry and for flip_at's advice.
type Clock interface {
	Boot() time.Duration
	Now() time.Time
}

// cut shortens a text for the table on a rune's border.
func cut(s string) string {
	if len(s) <= textLimit {
		return s
	}
	end := textLimit
	for end > 0 && s[end]&0xC0 == 0x80 {
		end--
	}
	return s[:end]
}
