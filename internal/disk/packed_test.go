package disk

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"s3pulldeploy/internal/release"
)

// packed is a release by path: content, or, of a name that ends in "/", an empty directory, in "*", an
// executable, in "@", a link's target, and in "+n", a file that was changed n seconds later than others.
type packed map[string]string

// manifest returns the entries, directories included, and the bodies beside them.
func (p packed) manifest() (*release.Manifest, [][]byte) {
	body := map[string][]byte{}
	entries := map[string]release.Entry{}
	for name, content := range p {
		e := release.Entry{Path: strings.TrimRight(name, "/*@+"), MTime: released.Unix()}
		e.MTime += int64(strings.Count(name, "+"))
		switch {
		case strings.HasSuffix(name, "/"):
			e.Kind = release.Dir
		case strings.HasSuffix(name, "@"):
			e.Kind, e.Target = release.Symlink, content
		default:
			e.Kind, e.Size, e.Sum = release.File, int64(len(content)), sha256.Sum256([]byte(content))
			e.Exec = strings.Contains(name, "*")
		}
		entries[e.Path], body[e.Path] = e, []byte(content)
		for dir := path.Dir(e.Path); dir != "."; dir = path.Dir(dir) {
			if _, ok := entries[dir]; !ok {
				entries[dir] = release.Entry{Path: dir, Kind: release.Dir}
			}
		}
	}
	m := &release.Manifest{}
	var bodies [][]byte
	for _, e := range entries {
		m.Entries = append(m.Entries, e)
	}
	slices.SortFunc(m.Entries, func(a, b release.Entry) int { return release.ComparePaths(a.Path, b.Path) })
	for _, e := range m.Entries {
		bodies = append(bodies, body[e.Path])
	}
	return m, bodies
}

func stagePacked(t testing.TB, d *Disk, id release.ID, p packed) (*Stage, [][]byte) {
	t.Helper()
	m, bodies := p.manifest()
	s, err := d.StageManifest(t.Context(), id, "digest", m)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s, bodies
}

// deploy publishes a release and says whose contents were fetched.
func deploy(t testing.TB, d *Disk, id release.ID, p packed) []string {
	t.Helper()
	s, bodies := stagePacked(t, d, id, p)
	fetched := paths(s)
	putAll(t, s, bodies)
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
	if _, ok, err := d.Has(id); !ok {
		t.Fatalf("%s is not there once published: %v", id, err)
	}
	return fetched
}

func paths(s *Stage) []string {
	fetch := []string{}
	for _, i := range s.Need() {
		fetch = append(fetch, s.plan.entries[i].Path)
	}
	return fetch
}

func inode(t testing.TB, name string) uint64 {
	t.Helper()
	info, err := os.Lstat(name)
	must(t, err)
	return stat(info).Ino
}

var site = packed{"index.php": "<?php 1;", "bin/run*": "#!/bin/sh\n", "lib/a/b.php": "<?php b", "lib/a/empty": "", "log/": "", "lib/c@": "a/b.php", "up@": "lib"}

func TestManifestIsBuiltAsListed(t *testing.T) {
	d := open(t, options(t))
	want := []string{"bin/run", "index.php", "lib/a/b.php"}
	if got := deploy(t, d, r1, site); !slices.Equal(got, want) {
		t.Errorf("fetched %q, want %q", got, want)
	}
	file := "-rw-r--r-- " + released.String() + " "
	tree := map[string]string{
		".": "drwxr-xr-x", "bin": "drwxr-xr-x", "lib": "drwxr-xr-x", "lib/a": "drwxr-xr-x", "log": "drwxr-xr-x",
		"index.php": file + `"<?php 1;"`, "lib/a/b.php": file + `"<?php b"`, "lib/a/empty": file + `""`,
		"bin/run": "-rwxr-xr-x " + released.String() + ` "#!/bin/sh\n"`, "lib/c": "-> a/b.php", "up": "-> lib",
	}
	if got := snapshot(t, d.Path(r1)); !reflect.DeepEqual(got, tree) {
		t.Errorf("got %v\nwant %v", got, tree)
	}
	for _, p := range []string{"up", "index.php", "lib/a/empty"} {
		if info, err := os.Lstat(d.Path(r1) + "/" + p); err != nil || !info.ModTime().Equal(released) {
			t.Errorf("%s: %v, %v", p, info.ModTime(), err)
		}
	}
}

func TestWhatIsNewIsDecidedFileByFile(t *testing.T) {
	d := open(t, options(t))
	old := packed{"same": "same", "text": "text 1", "mode": "mode", "time": "time", "sub/moved": "moved", "empty": "", "twice": "twice"}
	deploy(t, d, r1, old)
	next := packed{"same": "same", "text": "text 2", "mode*": "mode", "time+": "time", "to/moved": "moved", "to/late+": "moved", "empty": "", "twice": "twice", "again": "twice"}
	if got := deploy(t, d, r2, next); !slices.Equal(got, []string{"text"}) {
		t.Errorf("fetched %q", got)
	}
	for p, linked := range map[string]string{"same": "same", "text": "", "mode": "", "time": "", "to/moved": "sub/moved", "to/late": "", "empty": "", "again": "twice"} {
		now := inode(t, filepath.Join(d.Path(r2), p))
		for q := range old {
			if was := inode(t, filepath.Join(d.Path(r1), q)); (was == now) != (q == linked) {
				t.Errorf("%s shares its inode with %s: %v, want it with %q", p, q, was == now, linked)
			}
		}
	}
	if _, ok, err := d.Has(r1); !ok {
		t.Error("the older release was touched:", err)
	}
}

func TestContentsAreFoundInAnyKeptRelease(t *testing.T) {
	d := open(t, options(t))
	first := strings.Repeat("first", lookFurther/4)
	deploy(t, d, r1, packed{"a": first, "b": "both"})
	deploy(t, d, r2, packed{"a": "second", "b": "both"})
	must(t, d.Flip(r2))
	if got := deploy(t, d, r3, packed{"a": "second", "c": first, "b": "both"}); len(got) != 0 {
		t.Errorf("fetched %q", got)
	}
	if inode(t, d.Path(r3)+"/c") != inode(t, d.Path(r1)+"/a") {
		t.Error("copied, where a link would do")
	}
	must(t, d.state.Remove(indexFile(r1)))
	must(t, os.WriteFile(d.opt.StateDir+"/"+indexFile(r2), []byte("torn"), 0o600))
	if got := deploy(t, d, "r4", packed{"x": first, "y": "both"}); len(got) != 0 {
		t.Errorf("fetched %q, with one index left", got)
	}
}

func TestLittleIsNotLookedForInOlderReleases(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, packed{"a": "first"})
	deploy(t, d, r2, packed{"a": "second", "b": "both"})
	must(t, d.Flip(r2))
	if got := deploy(t, d, r3, packed{"a": "first", "b": "both"}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("fetched %q", got)
	}
}

func TestPlainReleasesAreBasesToo(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, content{"a": "even", "b": "odd"})
	if got := deploy(t, d, r2, packed{"a": "even", "b": "odd", "c": "new"}); !slices.Equal(got, []string{"c"}) {
		t.Errorf("fetched %q", got)
	}
	if inode(t, d.Path(r1)+"/b") != inode(t, d.Path(r2)+"/b") {
		t.Error("not linked")
	}
}

func TestIncrementalBuildIsAsFreshOne(t *testing.T) {
	for seed := range uint64(25) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		o := options(t)
		o.Stamp, o.Writable = "stamp.php", []string{"d0/w"}
		o2 := options(t)
		o2.Stamp, o2.Writable = o.Stamp, o.Writable
		d, fresh := open(t, o), open(t, o2)
		for _, d := range []*Disk{d, fresh} { // this is not about what survives
			d.fsync, d.syncfs = func(*os.File) error { return nil }, func(*os.File) error { return nil }
		}
		for n := range 4 {
			p := randomPacked(rnd)
			id := benchID(n)
			s, bodies := stagePacked(t, d, id, p)
			for _, i := range s.Need() { // interrupted anywhere
				if rnd.IntN(3) > 0 {
					w := s.Writer()
					must(t, w.Put(i, 0, bodies[i]))
					must(t, w.Close())
				}
			}
			must(t, s.Close())
			deploy(t, d, id, p)
			must(t, d.Flip(id))
			deploy(t, fresh, "fresh", p)
			want, got := snapshot(t, fresh.Path("fresh")), snapshot(t, d.Path(id))
			want[o.Stamp], got[o.Stamp] = "", "" // tells the id
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, release %d: %v\nwant %v", seed, n, got, want)
			}
			must(t, os.RemoveAll(fresh.Path("fresh")))
			for k := range n { // and the older ones are as they were
				if _, ok, err := d.Has(benchID(k)); !ok {
					t.Fatalf("seed %d, release %d: %v", seed, k, err)
				}
			}
		}
	}
}

func randomPacked(rnd *rand.Rand) packed {
	p := packed{}
	for range rnd.IntN(40) {
		dir := ""
		for range rnd.IntN(4) {
			dir += fmt.Sprintf("d%d/", rnd.IntN(3))
		}
		if rnd.IntN(6) == 0 {
			dir += "w/"
		}
		name := fmt.Sprintf("%sf%d", dir, rnd.IntN(12))
		for _, suffix := range []string{"", "*", "+", "*+", "@"} {
			delete(p, name+suffix)
		}
		body := strings.Repeat(string(rune('a'+rnd.IntN(4))), rnd.IntN(4)*1500) // few, so that contents meet again
		switch rnd.IntN(8) {
		case 0:
			p[name+"*"] = body
		case 1:
			p[name+"+"] = body
		case 2:
			p[name+"@"] = "f0"
		case 3:
			p[dir+"empty/"] = ""
		default:
			p[name] = body
		}
	}
	return p
}

func TestHostileManifestsAreRefusedBeforeTheFirstWrite(t *testing.T) {
	dir := func(p string) release.Entry { return release.Entry{Path: p, Kind: release.Dir} }
	file := func(p string) release.Entry { return release.Entry{Path: p, Kind: release.File} }
	link := func(p, to string) release.Entry {
		return release.Entry{Path: p, Kind: release.Symlink, Target: to}
	}
	o := options(t)
	o.Shared, o.Stamp = map[string]string{"up": t.TempDir()}, "s.php"
	d := open(t, o)
	for name, entries := range map[string][]release.Entry{
		"parent":             {file("../x")},
		"absolute":           {file("/x")},
		"inner parent":       {dir("a"), file("a/../../x")},
		"no directory":       {file("a/b")},
		"file as directory":  {file("a"), file("a/b")},
		"link as directory":  {link("a", "b"), file("a/b")},
		"sibling as parent":  {dir("a"), file("a.b/c")},
		"twice":              {file("a"), file("a")},
		"dir and link":       {dir("a"), link("a", "b")},
		"out of order":       {file("b"), file("a")},
		"absolute link":      {link("a", "/etc/passwd")},
		"link out":           {dir("d"), link("d/a", "../../x")},
		"link to nothing":    {link("a", "")},
		"another kind":       {{Path: "a", Kind: 3}},
		"negative size":      {{Path: "a", Kind: release.File, Size: -1}},
		"overflow":           {{Path: "a", Kind: release.File, Size: 1 << 62}, {Path: "b", Kind: release.File, Size: 1 << 62}},
		"time overflow":      {{Path: "a", Kind: release.File, MTime: 1 << 62}},
		"below shared":       {dir("up"), file("up/x")},
		"link at shared":     {link("up", "x")},
		"stamp":              {file("s.php")},
		"more than there is": make([]release.Entry, release.MaxEntries+1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.StageManifest(t.Context(), r1, "", &release.Manifest{Entries: entries})
			wantErr(t, err, ErrListing, string(r1))
			if got := names(t, o.Root); len(got) != 0 || Fault(err) {
				t.Errorf("in root: %q; fault %v", got, Fault(err))
			}
		})
	}
	s, err := d.StageManifest(t.Context(), r1, "", &release.Manifest{Entries: []release.Entry{dir("a"), link("a/up", ".."), dir("a.b"), dir("up")}})
	must(t, err)
	must(t, s.Complete())
	if got := snapshot(t, s.Dir()); got["up"] != "-> "+o.Shared["up"] || got["a/up"] != "-> .." {
		t.Errorf("an empty directory gives way to a shared link: %v", got)
	}
}

func TestLargeDirectoryIsSeenWhole(t *testing.T) {
	d := open(t, options(t))
	p := packed{}
	for i := range 3000 { // more than one call to the kernel lists
		p[fmt.Sprintf("d/a name of some length %d", i)] = "x"
	}
	deploy(t, d, r1, p)
	must(t, os.Remove(d.Path(r1)+"/d/a name of some length 2999"))
	_, _, err := d.Has(r1)
	wantErr(t, err, ErrDamaged, "2999")
	if got := deploy(t, d, r2, p); !slices.Equal(got, []string{"d/a name of some length 2999"}) {
		t.Errorf("fetched %q", got)
	}
	s, _ := stagePacked(t, d, r3, p)
	must(t, os.Remove(s.Dir()+"/d/a name of some length 7"))
	wantErr(t, s.Complete(), ErrDamaged, "length 7")
}

func TestBuildsAfreshWhenReleasesCannotBeListed(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	must(t, os.Mkdir(d.Path("active"), 0o755))
	if got := deploy(t, d, r2, site); len(got) != 3 {
		t.Errorf("fetched %q", got)
	}
}

func TestInterruptedLinksAreContinuedFrom(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	next := packed{"index.php": "<?php 2;"}
	for p, body := range site {
		if p != "index.php" {
			next[p] = body
		}
	}
	s, _ := stagePacked(t, d, r2, next)
	must(t, s.Close())
	must(t, os.Remove(s.Dir()+"/bin/run"))
	must(t, os.Symlink("/etc/passwd", s.Dir()+"/bin/run"))
	must(t, os.Symlink("a", s.Dir()+"/lib/up"))
	links := 0
	real := d.link
	d.link = func(a int, from string, b int, to string) error { links++; return real(a, from, b, to) }
	if got := deploy(t, d, r2, next); !slices.Equal(got, []string{"index.php"}) || links != 1 {
		t.Errorf("fetched %q, linked %d", got, links)
	}
	if got := snapshot(t, d.Path(r2)); len(got) != len(snapshot(t, d.Path(r1))) {
		t.Errorf("got %v", got)
	}
}

func TestSweptWithoutTouchingSharedInodes(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, packed{"a": "shared", "b": "gone"})
	s, _ := stagePacked(t, d, r2, packed{"a": "shared", "b": "gone"})
	must(t, s.Close())
	before := snapshot(t, d.Path(r1))
	deploy(t, d, r2, packed{"a+": "shared", "b*": "gone"}) // the same id, staged anew from another listing
	if after := snapshot(t, d.Path(r1)); !reflect.DeepEqual(before, after) {
		t.Errorf("the older release is now %v", after)
	}
}

func TestSharedPathLeavesNoDirectoryBehind(t *testing.T) {
	o := options(t)
	d := open(t, o)
	p := packed{"up/": "", "x": "y"}
	s, _ := stagePacked(t, d, r1, p)
	must(t, s.Close())
	must(t, d.Close())
	o.Shared = map[string]string{"up": t.TempDir()}
	d = open(t, o)
	deploy(t, d, r1, p)
	if got, _ := os.Readlink(d.Path(r1) + "/up"); got != o.Shared["up"] {
		t.Errorf("link to %q", got)
	}
}
