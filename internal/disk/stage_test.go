package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

func TestReleaseIsBuiltAsListed(t *testing.T) {
	o := options(t)
	d := open(t, o)
	build(t, d, r1, app)
	file := "-rw-r--r-- " + released.String() + " "
	want := map[string]string{
		".": "drwxr-xr-x", "bin": "drwxr-xr-x", "lib": "drwxr-xr-x", "lib/a": "drwxr-xr-x",
		"index.php": file + `"<?php echo 1;"`, "lib/a/b.php": file + `"<?php // b"`, "empty": file + `""`,
		"bin/run": "-rwxr-xr-x " + released.String() + ` "#!/bin/sh\n"`,
	}
	if got := snapshot(t, d.Path(r1)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if digest, ok, err := d.Has(r1); !ok || err != nil || digest != "digest of "+string(r1) {
		t.Errorf("Has = %q, %v, %v", digest, ok, err)
	}
	if got := names(t, o.Root); !reflect.DeepEqual(got, []string{string(r1)}) {
		t.Errorf("in root: %q", got)
	}
}

func TestNothingIsThereBeforePublish(t *testing.T) {
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	must(t, s.Complete())
	if _, ok, err := d.Has(r1); ok || err != nil {
		t.Errorf("Has = %v, %v before Publish", ok, err)
	}
	if _, err := os.Lstat(d.Path(r1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the release has its name before Publish: %v", err)
	}
}

func TestListingIsRefusedBeforeTheFirstWrite(t *testing.T) {
	long := strings.Repeat("x", 256)
	sum := Digest(strings.Repeat("a", 64))
	cases := map[string][]File{
		"parent":         {{Path: "../x"}},
		"absolute":       {{Path: "/etc/x"}},
		"inner parent":   {{Path: "a/../../x"}},
		"empty":          {{Path: ""}},
		"dot":            {{Path: "."}},
		"empty part":     {{Path: "a//b"}},
		"trailing slash": {{Path: "a/"}},
		"NUL":            {{Path: "a\x00b"}},
		"newline":        {{Path: "a\nb"}},
		"backslash":      {{Path: `a\b`}},
		"long part":      {{Path: long}},
		"long path":      {{Path: strings.Repeat("x/", 2050) + "x"}},
		"invalid UTF-8":  {{Path: "a\xff"}},
		"file and dir":   {{Path: "a"}, {Path: "a/b"}},
		"dir and file":   {{Path: "a/b/c"}, {Path: "a"}},
		"twice":          {{Path: "a"}, {Path: "a"}},
		"negative size":  {{Path: "a", Size: -1}},
		"sizes overflow": {{Path: "a", Size: math.MaxInt64}, {Path: "b", Size: math.MaxInt64}},
		"odd digest":     {{Path: "a", Digest: "abc"}},
		"upper digest":   {{Path: "a", Digest: Digest(strings.ToUpper(string(sum)))}},
		"stamp":          {{Path: "_cache.php"}},
		"below stamp":    {{Path: "_cache.php/x"}},
		"shared file":    {{Path: "var/uploads"}},
		"below shared":   {{Path: "var/uploads/.gitkeep"}},
		"above shared":   {{Path: "var"}},
		"writable":       {{Path: "tmp/cache"}},
		"above writable": {{Path: "tmp"}},
		"too many":       make([]File, MaxFiles+1),
	}
	o := options(t)
	o.Stamp, o.Writable, o.Shared = "_cache.php", []string{"tmp/cache"}, map[string]string{"var/uploads": t.TempDir()}
	d := open(t, o)
	for name, files := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := d.Stage(t.Context(), r1, "", files)
			wantErr(t, err, ErrListing, string(r1))
			if Fault(err) {
				t.Errorf("%v: blamed on the machine", err)
			}
			if got := names(t, o.Root); len(got) != 0 {
				t.Errorf("written before the check: %q", got)
			}
		})
	}
	benign := []File{{Path: "A"}, {Path: "a"}, {Path: "a.b/c"}, {Path: "..x"}, {Path: "tmp/cache/.gitkeep"}, {Path: "ü/é"}, {Path: "sp ace"}}
	must(t, stage(t, d, r1, benign).Discard())
}

func TestIDsThatCannotBeDirectoriesAreRefused(t *testing.T) {
	d := open(t, options(t))
	for _, id := range []release.ID{"active", "previous", "", ".", "..", "../x", ".incoming-x", "a/b", "x"} {
		_, err := d.Stage(t.Context(), id, "", nil)
		wantErr(t, err, ErrListing)
		if _, ok, _ := d.Has(id); ok {
			t.Errorf("has %q", id)
		}
	}
}

func TestHugeReleaseIsRefusedBeforeTheFirstWrite(t *testing.T) {
	o := options(t)
	d := open(t, o)
	_, err := d.Stage(t.Context(), r1, "", []File{{Path: "a", Size: 1 << 61}})
	wantErr(t, err, ErrNoSpace, o.Root, fmt.Sprint(1<<61))
	if !Fault(err) {
		t.Error("no space is about this machine")
	}
	if got := names(t, o.Root); len(got) != 0 {
		t.Errorf("written: %q", got)
	}
}

func TestPutTakesExactlyWhatWasListed(t *testing.T) {
	cut := errors.New("connection cut")
	for name, c := range map[string]struct {
		file File
		r    io.Reader
		want error
	}{
		"short":        {fileOf("a", "hello"), strings.NewReader("hell"), ErrContent},
		"long":         {fileOf("a", "hello"), strings.NewReader("hello!"), ErrContent},
		"endless":      {fileOf("a", "hello"), endless{}, ErrContent},
		"other MD5":    {fileOf("a", "hello"), strings.NewReader("jello"), ErrContent},
		"other SHA":    {fileOf("a", "hell"), strings.NewReader("jell"), ErrContent},
		"broken":       {fileOf("a", "hello"), io.MultiReader(strings.NewReader("he"), iotest.ErrReader(cut)), cut},
		"unlisted":     {fileOf("b", "hello"), strings.NewReader("hello"), ErrListing},
		"another size": {File{Path: "a", Size: 3}, strings.NewReader("abc"), ErrListing},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			listed := c.file
			listed.Path = "a"
			if c.file.Size == 3 {
				listed.Size = 5
			}
			s := stage(t, d, r1, []File{listed})
			err := s.Put(c.file, c.r)
			wantErr(t, err, c.want, c.file.Path)
			if Fault(err) {
				t.Errorf("%v: blamed on the machine", err)
			}
			if got := names(t, s.Dir()); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
			if len(s.Missing()) != 1 {
				t.Error("counts as there")
			}
			wantErr(t, s.Complete(), ErrContent, "a")
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestPutIsSafeForManyWorkers(t *testing.T) {
	d := open(t, options(t))
	c := content{}
	for i := range 300 {
		c[fmt.Sprintf("d%d/e%d/f%d", i%7, i%3, i)] = strings.Repeat("x", i)
	}
	s := stage(t, d, r1, c.files())
	queue := make(chan File)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for f := range queue {
				if err := s.Put(f, strings.NewReader(c[f.Path])); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, f := range s.Missing() {
		queue <- f
	}
	close(queue)
	workers.Wait()
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
	if _, ok, err := d.Has(r1); !ok {
		t.Error("not there:", err)
	}
}

func TestInterruptedStageIsContinuedFromWhatIsWhole(t *testing.T) {
	o := options(t)
	d := open(t, o)
	files := app.files()
	files = append(files, File{Path: "nodigest", Size: 2, Modified: released})
	s := stage(t, d, r1, files)
	for _, f := range files {
		must(t, s.Put(f, strings.NewReader(app.body(f)+map[bool]string{true: "hi"}[f.Path == "nodigest"])))
	}
	must(t, s.Close())
	dir := s.Dir()
	must(t, os.WriteFile(dir+"/lib/a/b.php", []byte("<?php // "), 0o644)) // shorter
	must(t, os.WriteFile(dir+"/index.php", []byte("<?php echo 2;"), 0o644))
	must(t, os.Chtimes(dir+"/index.php", released, released)) // right size and time, wrong content
	must(t, os.WriteFile(dir+"/foreign", nil, 0o644))
	must(t, os.MkdirAll(dir+"/foreign.d/x", 0o755))

	s = stage(t, d, r1, files)
	var missing []string
	for _, f := range s.Missing() {
		missing = append(missing, f.Path)
	}
	if want := []string{"index.php", "lib/a/b.php", "nodigest"}; !reflect.DeepEqual(missing, want) {
		t.Errorf("missing %q, want %q", missing, want)
	}
	for _, f := range s.Missing() {
		must(t, s.Put(f, strings.NewReader(app.body(f)+map[bool]string{true: "hi"}[f.Path == "nodigest"])))
	}
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
}

func TestStagingTwiceGivesTheSameTree(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		c := randomContent(rnd)
		d := open(t, options(t))
		build(t, d, r1, c)
		s := stage(t, d, r2, c.files())
		for _, f := range s.Missing() { // interrupted anywhere
			if rnd.IntN(3) > 0 {
				must(t, s.Put(f, strings.NewReader(c.body(f))))
			}
		}
		must(t, s.Close())
		build(t, d, r2, c)
		if a, b := snapshot(t, d.Path(r1)), snapshot(t, d.Path(r2)); !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d: %v\nand %v", seed, a, b)
		}
	}
}

func randomContent(rnd *rand.Rand) content {
	c := content{}
	for range rnd.IntN(30) {
		// Files are named f…, directories d…, so that they never clash.
		dir := ""
		for range rnd.IntN(4) {
			dir += fmt.Sprintf("d%d/", rnd.IntN(3))
		}
		name := fmt.Sprintf("%sf %d%%", dir, rnd.IntN(20))
		if rnd.IntN(4) == 0 {
			name += "*"
		}
		delete(c, strings.TrimSuffix(name, "*"))
		delete(c, strings.TrimSuffix(name, "*")+"*")
		c[name] = string(bytes.Repeat([]byte{byte(rnd.IntN(256))}, rnd.IntN(5000)))
	}
	return c
}

func TestPlantedLinksAreNotFollowed(t *testing.T) {
	o := options(t)
	d := open(t, o)
	outside := t.TempDir()
	precious := filepath.Join(outside, "precious")
	must(t, os.WriteFile(precious, []byte("keep"), 0o600))
	s := stage(t, d, r1, app.files())
	dir := s.Dir()
	must(t, os.Symlink(precious, dir+"/index.php"))
	must(t, os.RemoveAll(dir+"/lib"))
	must(t, os.Symlink(outside, dir+"/lib"))
	must(t, os.RemoveAll(dir+"/bin"))
	must(t, os.Symlink("../"+string(r2), dir+"/bin"))
	must(t, os.MkdirAll(d.Path(r2), 0o755))
	for _, f := range s.Missing() {
		if err := s.Put(f, strings.NewReader(app.body(f))); f.Path != "empty" && err == nil {
			t.Errorf("%s was written through a link", f.Path)
		}
	}
	must(t, s.Close())
	build(t, d, r1, app) // sweeps the links away
	if got, _ := os.ReadFile(precious); string(got) != "keep" || len(names(t, outside)) != 1 || len(names(t, d.Path(r2))) != 0 {
		t.Errorf("outside was touched: %q %q %q", got, names(t, outside), names(t, d.Path(r2)))
	}
}

func TestPlantedLinkInPlaceOfTheStagingDirectoryIsReplaced(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	before := snapshot(t, d.Path(r1))
	must(t, os.Symlink(string(r1), d.Path(incomingPrefix+r2)))
	build(t, d, r2, content{"x": "y"})
	if after := snapshot(t, d.Path(r1)); !reflect.DeepEqual(before, after) {
		t.Errorf("the release behind the link changed: %v", after)
	}
	if info, err := os.Lstat(d.Path(r2)); err != nil || !info.IsDir() {
		t.Errorf("release is %v, %v", info, err)
	}
}

func TestFifoInStagingDoesNotBlock(t *testing.T) {
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	must(t, unix.Mkfifo(s.Dir()+"/index.php", 0o644))
	must(t, s.Close())
	build(t, d, r1, app)
}

func TestWhatOthersChangeWhileStagingIsNoticed(t *testing.T) {
	for name, tamper := range map[string]func(dir string) error{
		"file added":   func(dir string) error { return os.WriteFile(dir+"/evil.php", nil, 0o644) },
		"link added":   func(dir string) error { return os.Symlink("/etc", dir+"/evil.php") },
		"file altered": func(dir string) error { return os.WriteFile(dir+"/index.php", []byte("evil"), 0o644) },
		"file removed": func(dir string) error { return os.Remove(dir + "/index.php") },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			s := stage(t, d, r1, app.files())
			fill(t, s, app)
			must(t, tamper(s.Dir()))
			err := s.Complete()
			wantErr(t, err, ErrDamaged, s.Dir())
			if !Fault(err) {
				t.Error("tampering is about this machine")
			}
		})
	}
}

func TestOneReleaseIsStagedOnceAtATime(t *testing.T) {
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	if _, err := d.Stage(t.Context(), r1, "", app.files()); err == nil {
		t.Error("staged twice at once")
	}
	must(t, s.Discard())
	stage(t, d, r1, app.files())
}

func TestETagDigest(t *testing.T) {
	md5 := strings.Repeat("0a", 16)
	for etag, want := range map[string]Digest{
		`"` + md5 + `"`: Digest(md5), md5: Digest(md5), `"` + md5 + `-3"`: "", "": "", strings.Repeat("zz", 16): "", strings.Repeat("ab", 32): "",
	} {
		if got := ETagDigest(etag); got != want {
			t.Errorf("ETagDigest(%q) = %q, want %q", etag, got, want)
		}
	}
}

func FuzzAnyListingStaysInItsDirectory(f *testing.F) {
	for _, p := range []string{"a", "../x", "a/../b", "/x", ".", "a//b", "active/x", ".incoming-x", "a\x00"} {
		f.Add(p, "b/c")
	}
	f.Fuzz(func(t *testing.T, p, q string) {
		o := options(t)
		d := open(t, o)
		s, err := d.Stage(t.Context(), r1, "", []File{{Path: p}, {Path: q}})
		if err == nil {
			for _, f := range s.Missing() {
				must(t, s.Put(f, strings.NewReader("")))
			}
			must(t, s.Complete())
			must(t, s.Publish(t.Context()))
		}
		if got := names(t, o.Root); len(got) > 1 || len(got) == 1 && got[0] != string(r1) {
			t.Errorf("in root: %q", got)
		}
		if got := names(t, filepath.Dir(o.Root)); len(got) != 2 {
			t.Errorf("beside the root: %q", got)
		}
	})
}
