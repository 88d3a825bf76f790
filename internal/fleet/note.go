package fleet

import (
	"fmt"

	"s3pulldeploy/internal/release"
)

// Note is what an epoch runs on: the pointer's bytes as they were read, and the digest of the release that all
// members must see (of the manifest; in the plain layout of the opener's listing).
type Note struct {
	Sequence int64
	Digest   string
	Text     []byte
	Pointer  release.Pointer // Text, parsed
}

// NewNote parses a pointer's text, without verifying it: that is [Ledger.Verify]. The digest is added by whoever inspected the
// release.
func NewNote(text []byte) (Note, error) {
	p, err := release.ParsePointer(text)
	if err != nil {
		return Note{}, err
	}
	return Note{Sequence: p.Sequence, Text: text, Pointer: p}, nil
}

func noteSort(sequence int64) string { return fmt.Sprintf("note#%d", sequence) }

// Verify reads a pointer's text as one that may be run here: signed by a key of the ledger, where it has keys, and made for its
// scope. The digest is added by whoever inspected the release.
func (l *Ledger) Verify(text []byte) (Note, error) {
	p, err := l.Keys.Open(text)
	if err != nil {
		return Note{}, err
	}
	if p.Scope != l.scope && (p.Scope != "" || !p.Plain()) {
		return Note{}, &release.Error{What: "pointer", Rule: fmt.Sprintf("is of scope %q, not of %q", p.Scope, l.scope)}
	}
	return Note{Sequence: p.Sequence, Text: text, Pointer: p}, nil
}

// decodeNote reads a note's item; open is [NewNote] or [Ledger.Verify].
func decodeNote(sequence int64, it Item, open func([]byte) (Note, error)) (Note, error) {
	d := decoder{item: it, what: fmt.Sprintf("note %d", sequence)}
	text, digest := get[[]byte](&d, "text"), d.str("digest")
	if d.err != nil {
		return Note{}, d.err
	}
	n, err := open(text)
	if err != nil {
		return Note{}, fmt.Errorf("note %d: %w", sequence, err)
	}
	if n.Sequence != sequence {
		return Note{}, fmt.Errorf("note %d holds a pointer of sequence %d", sequence, n.Sequence)
	}
	n.Digest = digest
	return n, nil
}

// Log is an epoch's end, for people: written once, kept 90 days.
type Log struct {
	Epoch    int64
	Outcome  string // "done", "abort" or RolledBack
	Kind     string
	Release  release.ID
	Sequence int64 // under which the release was published
	Reason   string
	Members  int64
	Excluded []string // "instance: why"
	Nos      []string // "instance: reason"
	At       int64    // Unix seconds of the end
}

// RolledBack is the outcome of an epoch that was committed, failed its checks and was left by an automatic rollback.
const RolledBack = "rolled_back"

func logSort(epoch int64) string { return fmt.Sprintf("epoch#%012d", epoch) }

func (l Log) item(expires int64) Item {
	return Item{
		"epoch": l.Epoch, "outcome": l.Outcome, "kind": l.Kind, "release": string(l.Release), "sequence": l.Sequence,
		"reason": cut(l.Reason), "members": l.Members, "excluded": texts(l.Excluded), "nos": texts(l.Nos),
		"at": l.At, "ttl": expires, "schema": int64(Schema),
	}
}

func decodeLog(it Item) (Log, error) {
	d := decoder{item: it, what: "epoch log"}
	l := Log{
		Epoch: d.num("epoch"), Outcome: d.str("outcome"), Kind: d.str("kind"), Release: release.ID(d.str("release")),
		Sequence: d.num("sequence"), Reason: d.str("reason"), Members: d.num("members"), At: d.num("at"),
		Excluded: d.strs("excluded"), Nos: d.strs("nos"),
	}
	return l, d.err
}

func (d *decoder) strs(attr string) []string {
	var out []string
	for _, v := range get[[]Value](d, attr) {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// texts makes a list attribute; long lists are cut, an item has a limit of 400 KB.
func texts(list []string) []Value {
	out := []Value{}
	for i, s := range list {
		if i == 100 {
			return append(out, fmt.Sprintf("and %d more", len(list)-i))
		}
		out = append(out, cut(s))
	}
	return out
}
