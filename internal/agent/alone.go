package agent

import (
	"context"
	"errors"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// Alone is one machine without a fleet: it follows the pointer by the same steps as a member's worker, and nobody is asked. It
// is for measurements, which want the transfer by itself; of its parts it needs Config, Bucket, Disk and Log.
type Alone struct {
	machine *machine
	bucket  Bucket
	ledger  *fleet.Ledger
	etag    string // of the pointer that was fetched
}

// NewAlone wires a machine. It starts nothing.
func NewAlone(p Parts) *Alone {
	ledger := newLedger(p)
	return &Alone{machine: newMachine(p, p.Log, ledger), bucket: p.Bucket, ledger: ledger}
}

// Fetch brings the release that the pointer names to the disk, verified, durable and under its name, with the hooks that belong
// to it. It returns "" when the pointer is the one of the last Fetch, which costs one request.
func (a *Alone) Fetch(ctx context.Context) (release.ID, error) {
	read, err := a.bucket.Pointer(ctx, a.etag)
	if errors.Is(err, store.ErrNotModified) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	note, err := a.ledger.Verify(read.Text)
	if err != nil {
		return "", err
	}
	if note.Digest, err = a.machine.inspect(ctx, note); err != nil {
		return "", err
	}
	id := note.Pointer.Release
	want := fleet.Want{Task: fleet.Stage, Note: note, Commit: fleet.Commitment{Release: id, Sequence: note.Sequence}}
	if err := a.machine.stage(ctx, want, func(string) {}); err != nil {
		return "", err
	}
	a.etag = read.ETag
	return id, nil
}

// Live makes a release on the disk the live one, and removes those that the settings do not keep.
func (a *Alone) Live(id release.ID) error {
	if err := a.machine.disk.Flip(id); err != nil {
		return err
	}
	a.machine.clean(nil)
	return nil
}
