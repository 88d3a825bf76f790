package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

func TestWriterTakesExactlyWhatIsListed(t *testing.T) {
	d := open(t, options(t))
	s, _ := stagePacked(t, d, r1, packed{"d/a": "hello", "l@": "d/a"})
	at, _ := s.plan.find("d/a")
	w := s.Writer()
	defer w.Close()
	for name, c := range map[string]struct {
		i    int
		at   int64
		data string
		want error
	}{
		"other content": {at, 0, "jello", ErrContent},
		"too long":      {at, 0, "hello!", ErrContent},
		"too far":       {at, 3, "llo", ErrContent},
		"before":        {at, -1, "h", ErrContent},
		"empty part":    {at, 0, "", ErrContent},
		"a directory":   {at - 1, 0, "", ErrListing},
		"a link":        {at + 1, 0, "", ErrListing},
		"below":         {-1, 0, "", ErrListing},
		"beyond":        {3, 0, "", ErrListing},
	} {
		wantErr(t, w.Put(c.i, c.at, []byte(c.data)), c.want)
		if got := names(t, s.Dir()+"/d"); len(got) != 0 {
			t.Errorf("%s: left behind: %q", name, got)
		}
	}
	must(t, w.Put(at, 0, []byte("hello")))
	must(t, w.Put(at, 0, []byte("hello"))) // a range fetched again
	must(t, s.Complete())
	plain := stage(t, d, r2, content{"a": "b"}.files())
	wantErr(t, plain.Writer().Put(0, 0, []byte("b")), ErrListing)
	wantErr(t, s.Put(fileOf("d/a", "hello"), strings.NewReader("hello")), ErrListing)
}

func TestPartsComeInAnyOrderFromManyWriters(t *testing.T) {
	d := open(t, options(t))
	big := strings.Repeat("0123456789", 20_000)
	s, bodies := stagePacked(t, d, r1, packed{"big*": big})
	put := func(body []byte) error {
		var workers sync.WaitGroup
		errs := make([]error, 20)
		for n := range errs {
			workers.Go(func() {
				w := s.Writer()
				defer w.Close()
				at := (n * 7 % 20) * 10_000
				errs[n] = w.Put(0, int64(at), body[at:at+10_000])
			})
		}
		workers.Wait()
		return errors.Join(errs...)
	}
	bad := slices.Clone(bodies[0])
	bad[123_456] = 'x'
	wantErr(t, put(bad), ErrContent, "big")
	if got := names(t, s.Dir()); len(got) != 0 || len(s.Need()) != 1 {
		t.Fatalf("left behind: %q", got)
	}
	must(t, s.Writer().Put(0, 0, bodies[0][:10_000]))
	if info, err := os.Lstat(s.Dir() + "/big"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a partial file looks like a whole one: %v, %v", info, err)
	}
	must(t, s.Close())
	s, _ = stagePacked(t, d, r1, packed{"big*": big})
	if len(s.Need()) != 1 {
		t.Error("a partial file is continued from")
	}
	must(t, put(bodies[0]))
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
	if got := snapshot(t, d.Path(r1))["big"]; got != fmt.Sprintf("-rwxr-xr-x %s %q", released, big) {
		t.Error("another file than was put")
	}
}

func TestSyncsWhileMuchIsWritten(t *testing.T) {
	d := open(t, options(t))
	called := make(chan bool, 100)
	d.syncfs = func(*os.File) error { called <- true; return unix.EIO }
	s, err := d.StageManifest(t.Context(), r1, "", &release.Manifest{Entries: []release.Entry{
		{Path: "big", Kind: release.File, Size: flushAbove},
		{Path: "small", Kind: release.File, Size: 2, Sum: sha256.Sum256([]byte("hi"))},
	}})
	must(t, err)
	must(t, s.Writer().Put(1, 0, []byte("hi")))
	<-called
	wantErr(t, s.Complete(), ErrSync, s.Dir())
	if len(called) != 0 {
		t.Error("synced again after an error")
	}
	if got := names(t, d.opt.Root); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if err := s.Publish(t.Context()); err == nil {
		t.Error("published what was lost")
	}
}

func TestFailedSyncLeavesNothingToContinueFrom(t *testing.T) {
	d := open(t, options(t))
	called := make(chan bool, 100)
	d.syncfs = func(*os.File) error { called <- true; return unix.EIO }
	sum := sha256.Sum256([]byte("hi"))
	s, err := d.Stage(t.Context(), r1, "", []File{{Path: "big", Size: flushAbove}, {Path: "small", Size: 2, Digest: Digest(release.Sum(sum).String())}})
	must(t, err)
	must(t, s.Put(s.Missing()[1], strings.NewReader("hi")))
	<-called
	wantErr(t, s.Close(), ErrSync, s.Dir())
	if got := names(t, d.opt.Root); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func TestOnlyWhatIsNewNeedsSpace(t *testing.T) {
	o := options(t)
	o.Root = tmpfs(t, "size=10m,nr_inodes=200")
	d := open(t, o)
	p := packed{}
	for i := range 20 {
		p[fmt.Sprint("f", i)] = strings.Repeat(string(rune('a'+i)), 300<<10)
	}
	deploy(t, d, r1, p)
	if got := deploy(t, d, r2, p); len(got) != 0 {
		t.Errorf("fetched %q", got)
	}
	for k, v := range p {
		p[k] = strings.ToUpper(v)
	}
	m, _ := p.manifest()
	_, err := d.StageManifest(t.Context(), r3, "", m)
	wantErr(t, err, ErrNoSpace, o.Root)
	inodes := packed{}
	for i := range 190 {
		inodes[fmt.Sprint("d", i, "/")] = ""
	}
	m, _ = inodes.manifest()
	_, err = d.StageManifest(t.Context(), r3, "", m)
	wantErr(t, err, ErrNoSpace, "inodes")
}

func TestLinksAreSyncedBeforeTheReleaseIsComplete(t *testing.T) {
	d := open(t, options(t))
	m, bodies := shape(flushLinks + 100)
	buildPacked(t, d, r1, m, bodies)
	called := make(chan bool, 100)
	real := d.syncfs
	d.syncfs = func(f *os.File) error { called <- true; return real(f) }
	s, err := d.StageManifest(t.Context(), r2, "", m)
	must(t, err)
	<-called
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
	if _, ok, err := d.Has(r2); !ok {
		t.Error("not as published:", err)
	}
}

func TestWhatOnlyTheSettingsWantIsInTheIndex(t *testing.T) {
	o := options(t)
	o.Shared = map[string]string{"deep/down/up": t.TempDir()}
	o.Writable, o.Stamp = []string{"log", "new/cache"}, "lib/_cache.php"
	d := open(t, o)
	p := packed{"log/in": "a file below a writable directory"}
	for name, body := range site {
		p[name] = body
	}
	deploy(t, d, r1, p)
	looked, err := d.readIndex(r1)
	must(t, err)
	s, bodies := stagePacked(t, d, r2, p)
	putAll(t, s, bodies)
	must(t, s.Complete())
	s.Dir() // everything is looked at
	must(t, s.Publish(t.Context()))
	told, err := d.readIndex(r2)
	must(t, err)
	if a, b := describe(looked), describe(told); a != b {
		t.Errorf("what was known:\n%s\nwhat is there:\n%s", a, b)
	}
}

// describe is an index without what differs from one release of the same files to the next: inodes, and what the stamp says.
func describe(ix *index) string {
	var out strings.Builder
	for _, e := range ix.entries {
		if e.path == "lib/_cache.php" && e.sum != (release.Sum{}) {
			e.sum = release.Sum{1}
		}
		fmt.Fprintf(&out, "%c %o %s %s %s\n", e.kind, e.mode, e.path, e.sum, e.target)
	}
	return out.String()
}
