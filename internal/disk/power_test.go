package disk

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/testenv"
)

// powerLife is a release's way to the web server on a real filesystem, up to every step of which power may be lost. It does
// with the disk what the agent does, and takes a copy of the device at each step.
type powerLife struct {
	t     *testing.T
	image *testenv.Image
	o     Options
	d     *Disk
	build func(d *Disk, id release.ID, p packed, step func(string)) // until the release has its name
	trees map[release.ID]map[string]string                          // what must be found, by release

	cuts   []cut
	said   promises
	stayed bool // the release before is there
}

// promises is what the disk has said to be durable.
type promises struct{ published, voted, decided, flipped bool }

type cut struct {
	step, file string
	said       promises
}

// bodies are the contents of the two releases: many small files, as PHP has, and one that is larger.
func bodies(n int) packed {
	rng := rand.New(rand.NewPCG(7, 7))
	p := packed{"index.php": fmt.Sprintf("<?php // release %d", n), "bin/run*": "#!/bin/sh\n", "log/": "", "cur@": "lib"}
	for i := range 30 {
		p[fmt.Sprintf("lib/%d/%d.php", i%3, i)] = fmt.Sprintf("<?php // %d %x", i, rng.Uint64())
	}
	p["media/film"] = strings.Repeat(fmt.Sprintf("%x", rng.Uint64()), 8<<10)
	for i := range 5 { // changed by each release
		p[fmt.Sprintf("lib/%d/%d.php", i%3, i)] = fmt.Sprintf("<?php // %d of %d", i, n)
	}
	p[fmt.Sprintf("lib/new-%d.php", n)] = strings.Repeat("new ", 3000)
	return p
}

// plain leaves out what the plain layout cannot carry.
func (p packed) plain() content {
	c := content{}
	for name, body := range p {
		if !strings.ContainsAny(name, "@") && !strings.HasSuffix(name, "/") {
			c[name] = body
		}
	}
	return c
}

func bringPlain(t *testing.T) func(*Disk, release.ID, packed, func(string)) {
	return func(d *Disk, id release.ID, p packed, step func(string)) {
		c := p.plain()
		s := stage(t, d, id, c.files())
		for n, f := range s.Missing() {
			must(t, s.Put(f, strings.NewReader(c.body(f))))
			if n == len(c)/2 {
				step("A8 half of the contents written")
			}
		}
		step("A8 contents written")
		must(t, s.Complete())
		must(t, s.Publish(t.Context()))
	}
}

func bringPacked(t *testing.T) func(*Disk, release.ID, packed, func(string)) {
	return func(d *Disk, id release.ID, p packed, step func(string)) {
		s, bodies := stagePacked(t, d, id, p)
		step("A8 linked to the parent")
		putAll(t, s, bodies)
		step("A8 contents written")
		must(t, s.Complete())
		must(t, s.Publish(t.Context()))
	}
}

// newLife puts a release live, all of it durable, where there is to be a parent.
func newLife(t *testing.T, kind, layout string, parent bool) *powerLife {
	l := &powerLife{t: t, image: testenv.NewImage(t, kind), trees: map[release.ID]map[string]string{}, stayed: parent}
	l.o = Options{Root: l.image.Dir + "/root", Active: "active", StateDir: l.image.Dir + "/state", Stamp: "stamp.php", Writable: []string{"tmp"}}
	l.build = bringPacked(t)
	if layout == "plain" {
		l.build = bringPlain(t)
	}
	l.d = open(t, l.o)
	if parent {
		l.build(l.d, r1, bodies(1), func(string) {})
		must(t, l.d.Flip(r1))
		l.trees[r1] = snapshot(t, l.d.Path(r1))
	}
	return l
}

// cut takes what is on the device now. With a stranger, somebody else has made a file durable just before, which brings
// the filesystem's journal to the device with everything in it, ready or not.
func (l *powerLife) cut(step string, stranger bool) {
	t := l.t
	t.Helper()
	if stranger {
		f, err := os.Create(l.image.Dir + "/stranger")
		must(t, err)
		_, err = f.WriteString(step)
		must(t, errors.Join(err, f.Sync(), f.Close()))
		step += ", and a stranger's sync"
	}
	l.cuts = append(l.cuts, cut{step, l.image.Cut(t), l.said})
}

// watch has a copy taken before and after each call that makes something durable. Where skip says so, the call is left out,
// as a wrong order of steps would.
func (l *powerLife) watch(skip func(call string) bool) {
	calls := 0
	seam := func(name string, do func(*os.File) error) func(*os.File) error {
		return func(f *os.File) error {
			calls++
			of := filepath.Base(f.Name())
			switch f {
			case l.d.rootDir:
				of = "root"
			case l.d.stateDir:
				of = "state"
			}
			what := fmt.Sprintf("%d %s %s", calls, name, of)
			if skip(what) {
				return nil
			}
			l.cut("before "+what, true)
			err := do(f)
			l.cut("after "+what, false)
			return err
		}
	}
	l.d.fsync, l.d.syncfs = seam("fsync", l.d.fsync), seam("syncfs", l.d.syncfs)
}

// run brings r2 up and live, step by step, as the agent does. Steps are named as in the fault matrix.
func (l *powerLife) run() {
	t, d := l.t, l.d
	l.build(d, r2, bodies(2), func(step string) { l.cut(step, true) })
	l.trees[r2] = snapshot(t, d.Path(r2))
	l.said.published = true
	l.cut("A11 named", false)
	must(t, d.Save("vote", vote{2, string(r2)}))
	l.said.voted = true
	l.cut("A12 vote persisted", false)
	must(t, d.Save("decision", vote{2, string(r2)}))
	l.said.decided = true
	l.cut("A16 decision persisted", false)
	armed, err := d.Arm(r2)
	must(t, err)
	l.cut("A18 temporary link", true)
	must(t, armed.Flip())
	l.said.flipped = true
	l.cut("A20 flipped", false)
	must(t, d.Close())
	l.image.Unmount(t)
}

// broken boots what a cut has left, lets the agent's steps recover from it, and says what is wrong.
func (l *powerLife) broken(c cut) (wrong []string) {
	l.image.Boot(l.t, c.file)
	defer l.image.Unmount(l.t)
	bad := func(format string, args ...any) { wrong = append(wrong, c.step+": "+fmt.Sprintf(format, args...)) }
	d := open(l.t, l.o)
	defer d.Close()
	l.inspect(d, c.said, bad)
	l.restart(d, bad)
	return wrong
}

// inspect holds what is found against what may be there (I13), what was promised (I6, I14) and what Has says (I1).
func (l *powerLife) inspect(d *Disk, said promises, bad func(string, ...any)) {
	has := map[release.ID]bool{}
	for _, id := range []release.ID{r1, r2} {
		_, ok, err := d.Has(id)
		if has[id] = ok; ok {
			if diff := l.differs(d, id); diff != "" {
				bad("Has says that %s is here, but: %s", id, diff)
			}
		} else if err != nil {
			bad("%s: %v", id, err)
		}
	}
	active, err := d.Active()
	switch {
	case err != nil:
		bad("%v", err)
	case active == "" && l.stayed:
		bad("nothing is live")
	case active != "" && !has[active]:
		bad("%s is live and not whole", active)
	case said.flipped && active != r2:
		bad("flipped to %s for good, and %q is live", r2, active)
	}
	var voted, decided vote
	okVote, err1 := d.Load("vote", &voted)
	okDecision, err2 := d.Load("decision", &decided)
	if err := errors.Join(err1, err2); err != nil {
		bad("%v", err)
	}
	for what, lost := range map[string]bool{
		"the release before":                l.stayed && !has[r1],
		"the release that was published":    said.published && !has[r2],
		"the vote that was persisted":       said.voted && !okVote,
		"the decision that was persisted":   said.decided && !okDecision,
		"the release that was voted for":    okVote && !has[r2],
		"the release that was flipped to":   active == r2 && !okDecision,
		"the vote before the decision":      okDecision && !okVote,
		"the release that was decided upon": okDecision && !has[r2],
	} {
		if lost {
			bad("lost: %s", what)
		}
	}
}

// differs says how a release on the disk is not what was published, byte for byte.
func (l *powerLife) differs(d *Disk, id release.ID) string {
	got, want := snapshot(l.t, d.Path(id)), l.trees[id]
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] != want[p] {
			return fmt.Sprintf("%s is %.60q, not %.60q", p, got[p], want[p])
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d names, not %d", len(got), len(want))
	}
	return ""
}

// restart does what an agent does that starts on this disk: what is decided is flipped to without any download, else the
// release is brought up from what is left.
func (l *powerLife) restart(d *Disk, bad func(string, ...any)) {
	if _, ok, _ := d.Has(r2); !ok {
		l.build(d, r2, bodies(2), func(string) {})
	}
	if err := d.Flip(r2); err != nil {
		bad("recovery: %v", err)
		return
	}
	if _, err := d.Prune(Retention{Keep: map[release.ID]bool{r1: true}}); err != nil {
		bad("recovery: %v", err)
	}
	if diff := l.differs(d, r2); diff != "" {
		bad("recovered: %s", diff)
	}
	left, err := os.ReadDir(l.o.Root)
	if err != nil {
		bad("recovery: %v", err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), ".") {
			bad("recovery left %s", e.Name())
		}
	}
}

func TestPowerLossAtEveryStepLeavesOneWholeReleaseLive(t *testing.T) {
	for _, kind := range testenv.Filesystems {
		for _, layout := range []string{"plain", "packed"} {
			for _, parent := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/parent=%v", kind, layout, parent), func(t *testing.T) {
					t.Parallel()
					l := newLife(t, kind, layout, parent)
					l.watch(func(string) bool { return false })
					l.run()
					if len(l.cuts) < 25 {
						t.Errorf("only %d cuts", len(l.cuts))
					}
					for _, c := range l.cuts {
						for _, w := range l.broken(c) {
							t.Error(w)
						}
					}
				})
			}
		}
	}
}

// The method must see what it looks for: each durable step that is left out costs a release on some filesystem.
func TestPowerLossFindsADurableStepThatIsLeftOut(t *testing.T) {
	for name, skipped := range map[string]string{
		"the contents":        "syncfs",
		"the root":            "fsync root",
		"the state file":      "fsync .tmp-",
		"the state directory": "fsync state",
	} {
		t.Run("no sync of "+name, func(t *testing.T) {
			var found []string
			for _, kind := range testenv.Filesystems {
				l := newLife(t, kind, "plain", true)
				l.watch(func(call string) bool { return strings.Contains(call, skipped) })
				l.run()
				for _, c := range l.cuts {
					found = append(found, l.broken(c)...)
				}
				if len(found) > 0 {
					t.Logf("%s: %d faults, such as: %s", kind, len(found), found[0])
					return
				}
			}
			t.Error("nothing was lost on any filesystem: the test above proves nothing")
		})
	}
}
