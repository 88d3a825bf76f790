package disk

import (
	"cmp"
	"errors"
	"reflect"
	"testing"

	"s3pulldeploy/internal/testenv"
)

func TestRemountReadOnlyAtAnyStepKeepsServing(t *testing.T) {
	for n, at := range stepNames {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			image := testenv.NewImage(t, "ext4")
			s := newSteps(t, image)
			must(t, s.to(stepNames[:n]))
			image.ReadOnly(t, true)
			refused := s.to(stepNames[n:])
			if refused == nil {
				t.Error("nothing was refused")
			}
			image.ReadOnly(t, false)
			s.unharmed(refused, ErrReadOnly)
			s.recovers(refused)
		})
	}
}

// The disk's file has no room to grow: what was never written before fails when the kernel writes it back. On xfs it is the
// contents, and syncfs tells; on btrfs and ext4 it is the filesystem's own blocks too, and it goes read-only. On ext4 syncfs has
// been seen to report nothing of that: then the next step does.
func TestWritesThatDoNotReachTheDiskAreNeverPublished(t *testing.T) {
	for _, kind := range testenv.Filesystems {
		t.Run(kind, func(t *testing.T) {
			image := testenv.NewImage(t, kind)
			s := newSteps(t, image)
			want := snapshot(t, s.d.Path(r1))
			must(t, s.to([]string{"stage", "write", "complete"}))
			image.Break(t, true)
			refused := s.to([]string{"publish", "vote"})
			s.stage = nil
			wantLink(t, s.d, "active", r1)
			if _, ok, _ := s.d.Has(r2); ok {
				t.Error("published all the same")
			}
			image.Break(t, false)
			must(t, s.d.Close())
			image.Unmount(t)
			image.Boot(t, image.Cut(t))
			s.d = open(t, s.d.opt)
			s.unharmed(refused, cmp.Or(map[bool]error{true: ErrReadOnly}[errors.Is(refused, ErrReadOnly)], ErrSync))
			if got := snapshot(t, s.d.Path(r1)); !reflect.DeepEqual(got, want) {
				t.Error("what was live is not as it was")
			}
			s.recovers(refused)
		})
	}
}
