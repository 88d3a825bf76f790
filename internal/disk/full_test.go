package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/testenv"
)

// steps is a release's way to be live, a durable step at a time, on a disk that serves r1.
type steps struct {
	t     *testing.T
	d     *Disk
	stage *Stage
	armed *Armed
	tree  packed
}

var stepNames = []string{"stage", "write", "complete", "publish", "vote", "decision", "arm", "flip", "report"}

func (s *steps) do(name string) (err error) {
	switch name {
	case "stage":
		m, _ := s.tree.manifest()
		s.stage, err = s.d.StageManifest(s.t.Context(), r2, "digest", m)
	case "write":
		_, bodies := s.tree.manifest()
		w := s.stage.Writer()
		for _, i := range s.stage.Need() {
			if err == nil {
				err = w.Put(i, 0, bodies[i])
			}
		}
		err = errors.Join(err, w.Close())
	case "complete":
		err = s.stage.Complete()
	case "publish":
		err = s.stage.Publish(s.t.Context())
	case "arm":
		s.armed, err = s.d.Arm(r2)
	case "flip":
		err = s.armed.Flip()
	default: // vote, decision, report: the state file
		n := int64(slices.Index(stepNames, name))
		err = s.d.Save("state", vote{n, strings.Repeat(string(r2), 100)})
	}
	return err
}

// giveUp is what the agent does when a step went wrong.
func (s *steps) giveUp(err error) {
	var left error
	if s.stage != nil {
		left = s.stage.GiveUp(err)
	}
	if s.armed != nil {
		left = errors.Join(left, s.armed.Close())
	}
	if !errors.Is(left, ErrReadOnly) { // where nothing can be removed
		must(s.t, left)
	}
}

// fillers take what is left of a filesystem.
var fillers = map[string]func(t *testing.T, dir string) (undo func()){
	"bytes and inodes": cram,
	"inodes": func(t *testing.T, dir string) func() {
		dir = filepath.Join(dir, "many-"+rand.Text())
		must(t, os.Mkdir(dir, 0o700))
		var err error
		for n := 0; err == nil; n++ {
			err = os.WriteFile(fmt.Sprintf("%s/%d", dir, n), nil, 0o600)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return func() { must(t, os.RemoveAll(dir)) }
	},
}

func TestDiskThatFillsUpAtAnyStepCostsNothingButTheStep(t *testing.T) {
	for _, c := range []struct {
		kind, fill string
		mkfs       []string
	}{
		{"ext4", "bytes and inodes", nil},
		{"ext4", "inodes", []string{"-N", "160"}},
		{"xfs", "bytes and inodes", nil},
		{"btrfs", "bytes and inodes", nil},
	} {
		for n, at := range stepNames {
			t.Run(fmt.Sprintf("%s, no %s at %s", c.kind, c.fill, at), func(t *testing.T) {
				t.Parallel()
				image := testenv.NewImage(t, c.kind, c.mkfs...)
				s := newSteps(t, image)
				must(t, s.to(stepNames[:n]))
				undo, refused := func() (func(), error) {
					// A process that another test starts holds our files until it runs, and so the inode of one that was replaced.
					syscall.ForkLock.RLock()
					defer syscall.ForkLock.RUnlock()
					return fillers[c.fill](t, image.Dir), s.to(stepNames[n:])
				}()
				if refused != nil && n >= slices.Index(stepNames, "vote") {
					t.Errorf("the release is here, and the reserve did not do for the rest: %v", refused)
				}
				s.clean()
				s.unharmed(refused, ErrNoSpace)
				undo()
				must(t, s.d.syncfs(s.d.rootDir)) // xfs and btrfs give room back when they come to it
				s.recovers(refused)
			})
		}
	}
}

// Somebody else takes each byte that is given back, as logs and sessions do.
func TestReserveDoesForAllStepsAfterTheVoteOnADiskThatOthersFill(t *testing.T) {
	for _, kind := range testenv.Filesystems {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			image := testenv.NewImage(t, kind)
			s := newSteps(t, image)
			from := slices.Index(stepNames, "vote")
			must(t, s.to(stepNames[:from]))
			for _, step := range stepNames[from:] {
				cram(t, image.Dir)
				if err := s.do(step); err != nil {
					t.Fatalf("%s: %v", step, err)
				}
			}
			s.clean()
			s.unharmed(nil, nil)
		})
	}
}

// newSteps puts r1 live on a filesystem.
func newSteps(t *testing.T, image *testenv.Image) *steps {
	o := Options{Root: image.Dir + "/root", Active: "active", StateDir: image.Dir + "/state", Stamp: "stamp.php", Writable: []string{"tmp"}}
	d := open(t, o)
	deploy(t, d, r1, bodies(1))
	must(t, d.Flip(r1))
	must(t, d.Save("state", vote{1, string(r1)}))
	return &steps{t: t, d: d, tree: bodies(2)}
}

// recovers has the release brought up once more, if it was refused, and wants it live and nothing else there.
func (s *steps) recovers(refused error) {
	s.t.Helper()
	if refused != nil {
		s.stage, s.armed = nil, nil
		must(s.t, s.to(stepNames))
	}
	if _, err := s.d.Prune(Retention{}); err != nil {
		s.t.Error(err)
	}
	s.clean()
	wantLink(s.t, s.d, "active", r2)
	if _, ok, err := s.d.Has(r2); !ok {
		s.t.Error("recovered, and", err)
	}
}

// clean wants nothing left behind, of a tree, a link or a file that was to become one.
func (s *steps) clean() {
	s.t.Helper()
	for _, dir := range []string{s.d.opt.Root, s.d.opt.StateDir} {
		for _, n := range names(s.t, dir) {
			if strings.HasPrefix(n, ".") {
				s.t.Errorf("left behind: %s", filepath.Join(dir, n))
			}
		}
	}
}

// to does steps until one is refused, and gives up then.
func (s *steps) to(names []string) error {
	for _, name := range names {
		if err := s.do(name); err != nil {
			s.t.Logf("%s: %v", name, err)
			s.giveUp(err)
			return err
		}
	}
	return nil
}

// unharmed holds what a refused step has left against what it may leave: nothing. Then an agent starts there anew.
func (s *steps) unharmed(refused, why error) {
	t, d := s.t, s.d
	t.Helper()
	if refused != nil && (!errors.Is(refused, why) || !Fault(refused)) {
		t.Errorf("refused for %v, want %v", refused, why)
	}
	live, err := d.Active()
	if err != nil || live != r1 && live != r2 {
		t.Fatalf("live is %q, %v", live, err)
	}
	if refused == nil && live != r2 {
		t.Errorf("all went well, and %s is live", live)
	}
	if _, ok, err := d.Has(live); !ok {
		t.Errorf("%s is live and not whole: %v", live, err)
	}
	var v vote
	if ok, err := d.Load("state", &v); !ok || err != nil {
		t.Errorf("state: %v, %v", ok, err)
	}
	must(t, d.Close())
	s.d = open(t, d.opt)
	if now, err := s.d.Active(); now != live || err != nil {
		t.Errorf("after a restart %q is live, %v", now, err)
	}
}
