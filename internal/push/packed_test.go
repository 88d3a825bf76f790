package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

func TestAPackedReleaseComesBackAsItWas(t *testing.T) {
	r := newPackedRig(t, map[string]string{
		"index.php": "<?php", "empty/deep/": "", "none": "", "lib/a": "same", "lib/b": "same",
		"link": "-> lib/a", "dir": "-> lib", "later": "-> made/there", "lib/up": "-> ../index.php",
		"large": noise(1, 9<<20), "larger": strings.Repeat("large text\n", 1<<20),
	})
	if err := os.Chmod(filepath.Join(r.dir, "index.php"), 0o700); err != nil {
		t.Fatal(err)
	}
	result, requests := r.deploy("-message=why", "-commit=c0ffee")
	if result.Outcome != Published || result.Files != 10 || result.UnchangedFiles != 0 ||
		result.UploadedBytes < 9<<20 || result.UploadedBytes > 11<<20 {
		t.Errorf("result %+v", result)
	}
	if last := requests[len(requests)-1]; !strings.HasPrefix(last, "PUT") || !strings.HasSuffix(last, "/latest-deploy") {
		t.Errorf("the pointer is not last: %q", requests)
	}
	m := r.pull()
	if len(m.Entries) != 13 {
		t.Errorf("%d entries", len(m.Entries))
	}
	p := r.pointer()
	if p.Files != 10 || p.Message != "why" || p.Commit != "c0ffee" || p.Author == "" || !strings.HasSuffix(p.Scope, "/shop") || p.Delta != nil {
		t.Errorf("pointer %+v", p)
	}
}

func TestASmallChangeTakesFourRequests(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a/one": noise(1, 2000), "a/two": noise(2, 100_000), "x": "1"})
	r.deploy()
	parent := r.manifest(r.pointer())
	if err := os.Rename(filepath.Join(r.dir, "a"), filepath.Join(r.dir, "moved")); err != nil {
		t.Fatal(err)
	}
	r.write("x", "2")
	r.write("new/y", "3")
	result, requests := r.deploy()
	want := []string{"GET /%s/shop/latest-deploy", "PUT /%s/shop/d/%s/%s", "PUT /%s/shop/m/%s", "PUT /%s/shop/latest-deploy"}
	if len(requests) != len(want) {
		t.Errorf("requests %q, want %q", requests, want)
	}
	for i := range min(len(want), len(requests)) {
		if start, _, _ := strings.Cut(want[i], "%s"); !strings.HasPrefix(requests[i], start) {
			t.Errorf("request %d is %q, want %q", i, requests[i], want[i])
		}
	}
	if result.Files != 4 || result.UnchangedFiles != 0 || result.UploadedBytes > 2000 {
		t.Errorf("moved files cost something: %+v", result)
	}
	r.pull()
	p := r.pointer()
	if p.Delta == nil || matching(requests, "/d/", string(p.Release)+"/"+string(p.Delta.Parent)) == nil {
		t.Fatalf("delta %+v, requests %q", p.Delta, requests)
	}
	object, err := r.store.GetDelta(t.Context(), p.Release, p.Delta.Parent, p.Delta.Content)
	if err != nil {
		t.Fatal(err)
	}
	delta, err := release.ParseDelta(object)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := delta.Apply(parent); err != nil {
		t.Errorf("the delta does not lead from the parent to the release: %v", err)
	}
}

func TestADamagedOrMissingCacheIsSlowerAndNotWrong(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": noise(1, 2000), "b": "1"})
	r.deploy()
	cache := os.Getenv("XDG_CACHE_HOME")
	files := 0
	err := filepath.WalkDir(cache, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files++
			return os.WriteFile(name, []byte("s3pdidx1 damaged"), 0o600)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files in the cache, %v", files, err)
	}
	r.write("b", "2")
	result, requests := r.deploy()
	if len(requests) != 5 || len(matching(requests, "GET", "/m/")) != 1 || result.UnchangedFiles != 1 {
		t.Errorf("damaged: %q, %+v", requests, result)
	}
	r.pull()
	if err := os.RemoveAll(cache); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cache, nil, 0o600); err != nil { // nothing can be kept either
		t.Fatal(err)
	}
	r.write("b", "3")
	if result, requests = r.deploy(); len(requests) != 5 || result.UnchangedFiles != 1 {
		t.Errorf("impossible: %q, %+v", requests, result)
	}
	r.pull()
}

func TestTheSameTreeMovesNothing(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1", "e/": "", "l": "-> a"})
	first, _ := r.deploy()
	same, requests := r.deploy()
	if same.Outcome != Unchanged || same.Release != first.Release || same.UnchangedFiles != 2 || len(requests) != 1 {
		t.Errorf("%+v after %q", same, requests)
	}
	if err := os.Chmod(filepath.Join(r.dir, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	if other, _ := r.deploy(); other.Outcome != Published || other.UploadedBytes > 1000 {
		t.Errorf("the executable bit is a change: %+v", other)
	}
	if forced, _ := r.deploy("-force"); forced.Outcome != Published || forced.UnchangedFiles != 2 {
		t.Errorf("forced: %+v", forced)
	}
	r.pull()
}

func TestAPushFromASystemWithoutExecutableBitsKeepsThem(t *testing.T) {
	r := newPackedRig(t, map[string]string{"bin/run": "1", "page": "2"})
	chmod := func(name string, mode os.FileMode) {
		if err := os.Chmod(filepath.Join(r.dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod("bin/run", 0o755)
	first, _ := r.deploy()
	without := func(s *session) { s.noExec = true }
	push := func(args ...string) map[string]bool {
		if _, err := r.session(t.Context(), without, append([]string{"-deploy=" + r.dir}, args...)...); err != nil {
			t.Fatal(err)
		}
		exec := map[string]bool{}
		for _, e := range r.manifest(r.pointer()).Entries {
			if e.Kind == release.File {
				exec[e.Path] = e.Exec
			}
		}
		return exec
	}
	chmod("bin/run", 0o644) // as it is seen there
	if push(); r.pointer().Release != first.Release {
		t.Error("the same tree was moved")
	}
	r.write("bin/run", "changed")
	r.write("bin/new", "3")
	chmod("bin/new", 0o755)
	want := map[string]bool{"bin/run": true, "bin/new": false, "page": false}
	for _, args := range [][]string{nil, {"-force"}} {
		if exec := push(args...); !maps.Equal(exec, want) {
			t.Errorf("%q: executable %v, want %v", args, exec, want)
		}
	}
	out, err := r.session(t.Context(), without, "-deploy="+r.dir)
	if err != nil || !strings.Contains(out, "each keeps that of "+string(r.pointer().Release)+", new ones get none") {
		t.Errorf("said %q, %v", out, err)
	}
}

func TestADryRunSaysWhatItWouldDoAndDoesNothing(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1", "old": "2", ".deployignore": "*.log\ntmp/\n", "x.log": "", "tmp/y": ""})
	r.deploy()
	r.write("new", "three")
	if err := os.Remove(filepath.Join(r.dir, "old")); err != nil {
		t.Fatal(err)
	}
	r.wire.take()
	code, out, _ := r.push(t.Context(), "-deploy="+r.dir, "-dry-run")
	for _, want := range []string{"\n  + new\n", "\n  - old\n", "\n  ! tmp/\n", "\n  ! x.log\n", "dry run: would upload 1 file, 5 B"} {
		if code != exitDone || !strings.Contains(out, want) {
			t.Errorf("exit code %d, %q lacks %q", code, out, want)
		}
	}
	if requests := r.wire.take(); matching(requests, "PUT") != nil || matching(requests, "DELETE") != nil {
		t.Errorf("requests %q", requests)
	}
	message := strings.Repeat("x", release.MaxPointer)
	if code, _, said := r.push(t.Context(), "-deploy="+r.dir, "-message="+message); code != exitFailed || !strings.Contains(said, "longer than 4096") {
		t.Errorf("a message that is too long: %d, %s", code, said)
	}
	if requests := r.wire.take(); matching(requests, "PUT") != nil {
		t.Errorf("something was uploaded before the pointer was refused: %q", requests)
	}
}

func TestAnInterruptedPackedPushGoesOn(t *testing.T) {
	tree := map[string]string{}
	for i := range 44 {
		tree[fmt.Sprintf("f%d", i)] = noise(byte(i), 1<<20)
	}
	r := newPackedRig(t, tree)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var packs atomic.Int32
	r.wire.lets(func(request string, _ *http.Request) bool { // one pack arrives, the others break
		return len(matching([]string{request}, "PUT", "/p/")) == 0 || packs.Add(1) == 1
	})
	r.wire.after = func(request string) {
		if len(matching([]string{request}, "PUT", "/p/")) == 1 {
			cancel()
		}
	}
	if code, _, said := r.push(ctx, "-deploy="+r.dir); code != exitFailed {
		t.Fatalf("exit code %d: %s", code, said)
	}
	r.wire.lets(nil)
	r.wire.after = nil
	there, err := r.store.Packs(t.Context())
	if err != nil || len(there.Objects) != 1 {
		t.Fatalf("%d packs after the interruption, %v", len(there.Objects), err)
	}
	if _, err := r.store.Pointer(t.Context(), ""); err == nil {
		t.Error("there is a pointer after the interruption")
	}
	result, requests := r.deploy()
	if again := matching(requests, "PUT", there.Objects[0].Key); again != nil {
		t.Errorf("uploaded again: %q", again)
	}
	if most := int64(44<<20) - there.Objects[0].Size + 1<<20; result.UploadedBytes > most {
		t.Errorf("%d bytes were sent, want less than %d", result.UploadedBytes, most)
	}
	r.pull()
}

func TestALostPackedRaceNamesTheWinner(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.deploy()
	read, err := r.store.Pointer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	r.write("a", "2")
	r.wire.lets(func(request string, _ *http.Request) bool {
		if len(matching([]string{request}, "PUT", "/latest-deploy")) == 1 {
			if _, err := r.store.WritePointer(context.Background(), []byte("winner\n9999999999\n1"), read.ETag); err != nil {
				t.Error(err)
			}
		}
		return true
	})
	code, _, said := r.push(t.Context(), "-deploy="+r.dir)
	if code != exitConflict || !strings.Contains(said, `"winner"`) {
		t.Errorf("exit code %d: %s", code, said)
	}
}

func TestAFileThatChangesWhileItIsUploadedFailsThePush(t *testing.T) {
	for name, size := range map[string]int{"small": 1000, "large": 5 << 20} {
		r := newPackedRig(t, map[string]string{"steady": "1", "unsteady": noise(1, size)})
		var once atomic.Bool
		r.wire.lets(func(request string, _ *http.Request) bool { // the tree was hashed, and nothing was uploaded
			if strings.HasSuffix(request, " shop/m/") && once.CompareAndSwap(false, true) {
				r.write("unsteady", noise(2, size))
			}
			return true
		})
		code, _, said := r.push(t.Context(), "-deploy="+r.dir)
		if code != exitFailed || !strings.Contains(said, `file "unsteady" changed while it was read`) {
			t.Errorf("%s: exit code %d: %s", name, code, said)
		}
		if _, err := r.store.Pointer(t.Context(), ""); err == nil {
			t.Errorf("%s: it was published", name)
		}
	}
}

func TestARollbackOfAPackedRelease(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1", "b": noise(1, 5000)})
	first, _ := r.deploy()
	was := r.pointer()
	r.write("a", "2")
	second, _ := r.deploy()
	code, out, said := r.push(t.Context(), "-rollback="+string(first.Release), "-wait=false")
	if code != exitDone {
		t.Fatalf("exit code %d: %s %s", code, out, said)
	}
	p := r.pointer()
	if p.Release != first.Release || p.Kind != release.KindRollback || *p.Manifest != *was.Manifest || p.Delta != nil ||
		p.Files != 2 || p.Scope != was.Scope || p.Sequence <= second.Sequence {
		t.Errorf("pointer %+v", p)
	}
	r.write("a", "1")
	r.pull()
	if code, out, _ := r.push(t.Context(), "-releases"); code != exitDone ||
		!strings.Contains(out, string(first.Release)) || strings.Count(out, string(second.Release)) != 1 {
		t.Errorf("releases: %d %q", code, out)
	}
	r.printed(second.Release, "-manifest="+string(second.Release))
	r.printed(first.Release, "-manifest")
	if code, _, said := r.push(t.Context(), "-manifest=other"); code != exitFailed || !strings.Contains(said, "hint: only releases of the packed layout") {
		t.Errorf("a manifest that is not there: %d %s", code, said)
	}
	stands, err := r.store.FindManifest(t.Context(), second.Release)
	if err == nil {
		err = r.store.WriteTombstone(t.Context(), stands.Stored, r.manifest(p).Sources)
	}
	if err != nil {
		t.Fatal(err)
	}
	if code, out, _ := r.push(t.Context(), "-releases"); code != exitDone || strings.Contains(out, string(second.Release)) {
		t.Errorf("releases after one was dropped: %d %q", code, out)
	}
	for _, verb := range []string{"-rollback=", "-manifest="} {
		if code, _, said := r.push(t.Context(), verb+string(second.Release)); code != exitFailed || !strings.Contains(said, "it was dropped") {
			t.Errorf("%s of a dropped release: %d %s", verb, code, said)
		}
	}
}

// printed checks what -manifest prints.
func (r *packedRig) printed(want release.ID, args ...string) {
	r.Helper()
	code, out, said := r.push(r.Context(), args...)
	var list struct {
		Release release.ID
		Entries []struct{ Path, Type string }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != exitDone || list.Release != want || len(list.Entries) != 2 {
		r.Errorf("%v: exit code %d, %+v, %v, %s", args, code, list, err, said)
	}
}

func TestWhatIsTooScatteredIsStoredAnew(t *testing.T) {
	tree := map[string]string{}
	for i := range 60 {
		tree[fmt.Sprintf("f%02d", i)] = noise(byte(i), 200_000)
	}
	r := newPackedRig(t, tree)
	r.deploy()
	for i := range 60 {
		if i%3 != 0 {
			if err := os.Remove(filepath.Join(r.dir, fmt.Sprintf("f%02d", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.write("new", "1")
	result, _ := r.deploy()
	m := r.pull()
	if len(m.Sources) > 2 || m.Sources[0].Release != "" || result.UploadedBytes < 20*200_000 {
		t.Errorf("%d sources, %+v", len(m.Sources), result)
	}
	if c := m.FreshCost(); c.NeedsBaseline() {
		t.Errorf("the new baseline costs %+v", c)
	}
}

func TestContentsOfAnyKeptReleaseAreNotUploaded(t *testing.T) {
	r := newPackedRig(t, map[string]string{"big": noise(1, 9<<20), "x": "1"})
	r.deploy()
	if err := os.Remove(filepath.Join(r.dir, "big")); err != nil {
		t.Fatal(err)
	}
	r.deploy()
	r.write("back", noise(1, 9<<20)) // only the release before the parent has it
	result, requests := r.deploy()
	if result.UploadedBytes > 10_000 || matching(requests, "/p/") != nil || matching(requests, "GET", "shop/m/") == nil {
		t.Errorf("%+v after %q", result, requests)
	}
	r.pull()
}

func TestTenThousandFilesTakeAHandfulOfRequests(t *testing.T) {
	r := newPackedRig(t, nil)
	for i := range 10_000 {
		r.write(fmt.Sprintf("d%d/s%d/f%d.php", i%10, i%100, i), fmt.Sprintf("<?php return %d;", i))
	}
	_, requests := r.deploy()
	r.write("d1/new.php", "<?php")
	result, small := r.deploy()
	if len(requests) > 8 || len(small) > 4 || result.UnchangedFiles != 10_000 { // one request a file would be minutes
		t.Errorf("%d requests, then %d, %+v", len(requests), len(small), result)
	}
	r.pull()
}

func TestPushesFromPlainToPackedAndBack(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.deploy("-layout=plain")
	if p := r.pointer(); !p.Plain() {
		t.Fatalf("pointer %+v", p)
	}
	if packed, _ := r.deploy(); packed.Outcome != Published {
		t.Errorf("packed: %+v", packed)
	}
	r.pull()
	if again, _ := r.deploy("-layout=plain"); again.Outcome != Published || !r.pointer().Plain() {
		t.Errorf("plain again: %+v", again)
	}
}

func TestAPointerWhoseManifestIsGoneIsPushedOver(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1", "b": noise(1, 2000)})
	first, _ := r.deploy()
	if err := os.Remove(filepath.Join(r.bucket, "shop/m", string(first.Release))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(os.Getenv("XDG_CACHE_HOME")); err != nil {
		t.Fatal(err)
	}
	r.write("a", "3")
	code, _, said := r.push(t.Context(), "-deploy="+r.dir)
	if code != exitDone || !strings.Contains(said, "cannot be compared with") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if p := r.pointer(); p.Delta != nil {
		t.Errorf("a delta to what is gone: %+v", p)
	}
	r.pull()
}

func TestAPackTooOldToRelyOnIsWrittenAgain(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": noise(1, 50_000)})
	r.deploy()
	packs, err := filepath.Glob(filepath.Join(r.bucket, "shop/p/*"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %q, %v", packs, err)
	}
	// As a push left it that never came to its manifest.
	then := time.Now().Add(-store.Grace/2 - time.Hour)
	if err := errors.Join(os.RemoveAll(filepath.Join(r.bucket, "shop/m")), os.Remove(filepath.Join(r.bucket, "shop/latest-deploy")),
		os.Chtimes(packs[0], then, then)); err != nil {
		t.Fatal(err)
	}
	_, requests := r.deploy()
	info, err := os.Stat(packs[0])
	if err != nil || time.Since(info.ModTime()) > time.Hour || matching(requests, "PUT", "/p/") == nil {
		t.Errorf("the pack is of %v, %v, after %q", info.ModTime(), err, requests)
	}
	heads := matching(requests, "HEAD", "/p/")
	if len(heads) == 0 || strings.HasPrefix(requests[len(requests)-1], "HEAD") {
		t.Errorf("nobody looked whether it stayed: %q", requests)
	}
	r.pull()
}

func TestAPushOverAManifestThatIsNotTheSignedOneSaysSoAndBuildsOnNothingOfIt(t *testing.T) {
	spoil := map[string]func(object, other []byte) []byte{
		"truncated":   func(object, _ []byte) []byte { return object[:len(object)-9] },
		"swapped":     func(_, other []byte) []byte { return other },
		"oversized":   func(object, _ []byte) []byte { return append(bytes.Clone(object), object...) },
		"bit-flipped": func(object, _ []byte) []byte { o := bytes.Clone(object); o[len(o)/2] ^= 1; return o },
		"empty":       func(_, _ []byte) []byte { return nil },
	}
	for name, change := range spoil {
		r := newPackedRig(t, map[string]string{"a": "1", "b": noise(1, 2000)})
		first, _ := r.deploy()
		r.write("a", "2")
		second, _ := r.deploy()
		client := s3.NewFromConfig(r.aws, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &r.endpoint, true })
		object := func(id release.ID) []byte {
			found, err := r.store.FindManifest(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return found.Object
		}
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: aws.String(filepath.Base(r.bucket)), Key: aws.String("shop/m/" + string(second.Release)),
			Body: bytes.NewReader(change(object(second.Release), object(first.Release))),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(os.Getenv("XDG_CACHE_HOME")); err != nil {
			t.Fatal(err)
		}
		r.write("a", "3")
		code, _, said := r.push(t.Context(), "-deploy="+r.dir)
		if code != exitDone || !strings.Contains(said, fmt.Sprintf("cannot be compared with: read manifest %q", second.Release)) {
			t.Errorf("%s: exit code %d: %s", name, code, said)
		}
		if p := r.pointer(); p.Delta != nil {
			t.Errorf("%s: a delta to what is not there: %+v", name, p)
		}
		r.pull()
	}
}

func TestADamagedPackIsMendedByForce(t *testing.T) {
	r := newPackedRig(t, map[string]string{"big": noise(1, 9<<20), "x": "1"})
	r.deploy()
	pack := filepath.Join(r.bucket, "shop", matching(r.objects(), "p/")[0])
	body, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	body[len(body)/2] ^= 4
	if err := os.WriteFile(pack, body, 0o644); err != nil {
		t.Fatal(err)
	}
	r.age(7*time.Hour, "p/")
	if result, _ := r.deploy("-force"); result.Outcome != Published || result.UploadedBytes < 9<<20 {
		t.Errorf("%+v", result)
	}
	r.pull()
}

func TestAPackThatIsGoneOrCutIsStoredAnewWhereItIsSeen(t *testing.T) {
	for _, size := range []int64{-1, 1000} {
		r := newPackedRig(t, map[string]string{"big": noise(1, 9<<20), "x": "1"})
		r.deploy()
		pack := filepath.Join(r.bucket, "shop", matching(r.objects(), "p/")[0])
		err := os.Truncate(pack, max(size, 0))
		if size < 0 {
			err = os.Remove(pack)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.write("other", noise(2, 9<<20))                           // enough that the packs are listed
		if result, _ := r.deploy(); result.UploadedBytes < 10<<20 { // more than what is new
			t.Errorf("%+v", result)
		}
		r.pull()
	}
}
