package disk

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type vote struct {
	Epoch   int64
	Release string
}

func TestStateIsReadBackAfterReopening(t *testing.T) {
	o := options(t)
	d := open(t, o)
	var got vote
	if ok, err := d.Load("vote", &got); ok || err != nil {
		t.Errorf("Load = %v, %v before any Save", ok, err)
	}
	must(t, d.Save("vote", vote{1, "a"}))
	must(t, d.Save("vote", vote{2, "b"}))
	must(t, d.Close())
	if ok, err := open(t, o).Load("vote", &got); !ok || err != nil || got != (vote{2, "b"}) {
		t.Errorf("Load = %v, %v: %v", ok, err, got)
	}
}

func TestTornStateIsAnErrorThatNamesTheFile(t *testing.T) {
	d := open(t, options(t))
	must(t, d.Save("vote", vote{7, "x"}))
	file := filepath.Join(d.opt.StateDir, "vote.json")
	whole, err := os.ReadFile(file)
	must(t, err)
	torn := map[string]string{"empty": "", "zeros": strings.Repeat("\x00", len(whole)), "garbage": "{}", "altered": strings.Replace(string(whole), "7", "8", 1), "longer": string(whole) + "\n"}
	for _, n := range []int{1, len(whole) / 2, len(whole) - 1} {
		torn["cut at "+string(rune('0'+n%10))] = string(whole[:n])
	}
	for name, text := range torn {
		must(t, os.WriteFile(file, []byte(text), 0o600))
		got := vote{1, "old"}
		ok, err := d.Load("vote", &got)
		wantErr(t, err, ErrState, file)
		if ok || got != (vote{1, "old"}) || !Fault(err) {
			t.Errorf("%s: ok %v, got %v, fault %v", name, ok, got, Fault(err))
		}
	}
}

func TestTornIndexIsDamageThatCanBeRepaired(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	file := d.statePath(indexFile(r1))
	must(t, os.WriteFile(file, []byte("torn"), 0o600))
	_, ok, err := d.Has(r1)
	wantErr(t, err, ErrState, file)
	if ok {
		t.Error("counts as there")
	}
	build(t, d, r1, app)
	must(t, d.Flip(r1))
}

func TestStateNamesAreConfined(t *testing.T) {
	d := open(t, options(t))
	for _, name := range []string{"", "../x", "a/b", "A", ".tmp-x", "a.index"} {
		if err := d.Save(name, 1); err == nil {
			t.Errorf("saved %q", name)
		}
	}
}

func TestCrashAnywhereInSaveLeavesOldOrNew(t *testing.T) {
	for n := 1; ; n++ {
		o := options(t)
		d := open(t, o)
		must(t, d.Save("vote", vote{1, "old"}))
		crashed, err := crashAt(d, n, func() error { return d.Save("vote", vote{2, "new"}) })
		must(t, err)
		must(t, d.Close())
		d = open(t, o)
		var got vote
		if ok, err := d.Load("vote", &got); !ok || err != nil || got.Epoch == 2 != (got.Release == "new") {
			t.Errorf("step %d: %v, %v, %v", n, ok, err, got)
		}
		if left, _ := filepath.Glob(o.StateDir + "/.tmp-*"); len(left) > 0 {
			t.Errorf("step %d: left %q", n, left)
		}
		must(t, d.Save("vote", vote{3, "later"}))
		if !crashed {
			return
		}
	}
}

func TestFailedSaveKeepsTheOldState(t *testing.T) {
	d := open(t, options(t))
	must(t, d.Save("vote", vote{1, "old"}))
	d.fsync = func(*os.File) error { return errors.New("input/output error") }
	wantErr(t, d.Save("vote", vote{2, "new"}), ErrSync, "vote.json")
	var got vote
	if _, err := d.Load("vote", &got); err != nil || got.Epoch != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

// cram fills the filesystem that dir lies on, to the last byte and inode.
func cram(t *testing.T, dir string) (undo func()) {
	t.Helper()
	var made []string
	for i := 0; ; i++ {
		name := filepath.Join(dir, "filler-"+rand.Text())
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if err != nil {
			break
		}
		made = append(made, name)
		size := int64(0)
		for _, n := range []int64{32 << 20, 1 << 20, 64 << 10} { // room that is taken without writing to it
			for unix.Fallocate(int(f.Fd()), 0, size, n) == nil {
				size += n
			}
		}
		_, err = f.Seek(size, io.SeekStart)
		must(t, err)
		for _, n := range []int{64 << 10, 4 << 10, 1} {
			for err = nil; err == nil; {
				_, err = f.Write(make([]byte, n))
			}
		}
		f.Close()
		if i == 199 {
			break
		}
	}
	return func() {
		for _, m := range made {
			os.Remove(m)
		}
	}
}

func onOneTmpfs(t *testing.T, opts string) Options {
	top := tmpfs(t, opts)
	return Options{Root: top + "/root", Active: "active", StateDir: top + "/state"}
}

func TestFullDiskStillTakesTheDecisionAndTheFlip(t *testing.T) {
	for _, opts := range []string{"size=4m,nr_inodes=1000", "size=4m,nr_inodes=60"} {
		o := onOneTmpfs(t, opts)
		d := open(t, o)
		build(t, d, r1, app)
		build(t, d, r2, app)
		must(t, d.Flip(r1))
		must(t, d.Save("decision", vote{1, "r1"}))
		cram(t, filepath.Dir(o.Root))
		must(t, d.Save("decision", vote{2, strings.Repeat("r2", 2000)}))
		must(t, d.Flip(r2))
		wantLink(t, d, "active", r2)
		must(t, d.Close())
		d = open(t, o) // and starts again on the full disk
		var got vote
		if ok, err := d.Load("decision", &got); !ok || err != nil || got.Epoch != 2 {
			t.Errorf("decision %v, %v, %v", ok, err, got.Epoch)
		}
	}
}

func TestFullDiskWhileFetchingIsNamedAndLeavesNoPartialFile(t *testing.T) {
	o := onOneTmpfs(t, "size=2m")
	d := open(t, o)
	c := content{"big": strings.Repeat("x", 200<<10), "small": "1"}
	s := stage(t, d, r1, c.files())
	undo := cram(t, filepath.Dir(o.Root))
	err := s.Put(s.Missing()[0], strings.NewReader(c["big"]))
	wantErr(t, err, ErrNoSpace, "big")
	if !Fault(err) {
		t.Error("a full disk is about this machine")
	}
	if got := names(t, s.Dir()); slices.Contains(got, "big") {
		t.Errorf("left: %q", got)
	}
	undo()
	fill(t, s, c)
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
}

func TestSpaceAndInodesAreCheckedFirst(t *testing.T) {
	many := make([]File, 90)
	for i := range many {
		many[i].Path = strings.Repeat("f", i+1)
	}
	for opts, files := range map[string][]File{"size=1m": {{Path: "a", Size: 1 << 20}}, "size=1m,nr_inodes=100": many} {
		d := open(t, onOneTmpfs(t, opts))
		_, err := d.Stage(t.Context(), r1, "", files)
		wantErr(t, err, ErrNoSpace, d.opt.Root, "needs")
		if got := names(t, d.opt.Root); len(got) != 0 {
			t.Errorf("%s: written %q", opts, got)
		}
	}
}

func TestContinuedStageNeedsSpaceOnlyForTheRest(t *testing.T) {
	d := open(t, onOneTmpfs(t, "size=2m"))
	c := content{"a": strings.Repeat("a", 350<<10), "b": strings.Repeat("b", 350<<10)}
	s := stage(t, d, r1, c.files())
	must(t, s.Put(s.Missing()[0], strings.NewReader(c["a"])))
	must(t, s.Close())
	build(t, d, r1, c)
}
