package fleet

import (
	"cmp"

	"s3pulldeploy/internal/release"
)

// State is what a member must not forget: it is saved before the step that it allows, and read at start.
type State struct {
	Scope    string `json:"scope"`
	Instance string `json:"instance"`
	// Epoch is the newest epoch durably seen: an older head is ignored.
	Epoch int64 `json:"epoch"`
	// Floor is the highest pointer sequence durably seen, FloorSum its text's SHA-256: an older pointer, or
	// another text under the same sequence, is refused.
	Floor    int64  `json:"floor"`
	FloorSum string `json:"floor_sum,omitempty"`
	Vote     Vote   `json:"vote"`
	// Decision is the newest commit that was read: to be flipped to, or flipped to already.
	Decision Commitment `json:"decision"`
	// Ahead is what a wave took this member to before the decision; it counts while its epoch is at a wave, and until then Decision
	// is what to go back to.
	Ahead Commitment `json:"ahead,omitzero"`
	// Flipped is what `active` points to; Settled the epoch whose hooks and health check passed after it.
	Flipped   Commitment `json:"flipped"`
	FlippedAt int64      `json:"flipped_at,omitempty"` // Unix milliseconds, for people
	Settled   int64      `json:"settled"`
	// Failed is the last epoch whose flip or health check failed here; Error says how.
	Failed int64   `json:"failed,omitempty"`
	Error  string  `json:"error,omitempty"`
	Bad    []int64 `json:"bad,omitempty"`
}

// Commitment is a release that an epoch decided on.
type Commitment struct {
	Epoch    int64      `json:"epoch"`
	Sequence int64      `json:"sequence"`
	Source   int64      `json:"source,omitempty"` // see [Head.Source]
	Release  release.ID `json:"release"`
	Digest   string     `json:"digest,omitempty"`
	Kind     string     `json:"kind,omitempty"` // "", where nobody knows, or KindRollback
}

// Note is the sequence whose note tells of the release.
func (c Commitment) Note() int64 { return cmp.Or(c.Source, c.Sequence) }

// Journal keeps the state: Save returns only when it is durable.
type Journal interface {
	Save(State) error
}
