package push

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// objects are the keys below the site, sorted. The server keeps old versions, so the disk shows more.
func (r *packedRig) objects() (keys []string) {
	r.Helper()
	client := s3.NewFromConfig(r.aws, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &r.endpoint, true })
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: aws.String(filepath.Base(r.bucket)), Prefix: aws.String("shop/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(r.Context())
		if err != nil {
			r.Fatal(err)
		}
		for _, o := range page.Contents {
			keys = append(keys, strings.TrimPrefix(*o.Key, "shop/"))
		}
	}
	return keys
}

// age makes objects older: those whose key begins so, or all.
func (r *packedRig) age(by time.Duration, prefix string) {
	r.Helper()
	for _, key := range r.objects() {
		name := filepath.Join(r.bucket, "shop", key)
		info, err := os.Stat(name)
		if err == nil && strings.HasPrefix(key, prefix) {
			then := info.ModTime().Add(-by)
			err = os.Chtimes(name, then, then)
		}
		if err != nil {
			r.Fatal(err)
		}
	}
}

// gc cleans up, which must end well.
func (r *packedRig) gc(args ...string) (d Cleaned) {
	r.Helper()
	code, out, said := r.push(r.Context(), append([]string{"-gc", "-json"}, args...)...)
	if code != exitDone {
		r.Fatalf("exit code %d: %s", code, said)
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		r.Fatal(err)
	}
	return d
}

// series pushes so many releases, each with contents of its own in a pack.
func (r *packedRig) series(n int) (ids []release.ID) {
	r.Helper()
	for i := range n {
		r.write("big", noise(byte(i), 9<<20))
		r.write("small", noise(byte(100+i), 3000))
		result, _ := r.deploy()
		ids = append(ids, result.Release)
	}
	return ids
}

const aDay = store.Grace + time.Hour

func TestADroppedReleaseIsGoneAtOnceAndItsContentsADayLater(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.settings("keep_remote: 2\n")
	ids := r.series(5)
	if d := r.gc(); len(d.Dropped) != 0 || d.Deleted != 0 || d.Kept != 5 {
		t.Errorf("everything is young: %+v", d)
	}
	r.age(aDay, "")
	before := r.objects()
	dry := r.gc("-dry-run")
	if now := r.objects(); !slices.Equal(before, now) || dry.Outcome != DryRun {
		t.Errorf("a dry run changed something: %+v, %q", dry, now)
	}
	d := r.gc()
	want := []release.ID{ids[2], ids[1], ids[0]}
	if !slices.Equal(d.Dropped, want) || !slices.Equal(dry.Dropped, want) || d.Deleted != 0 || dry.Deleted != 0 || d.Kept != 2 {
		t.Errorf("%+v, dry %+v, want %v dropped", d, dry, want)
	}
	if code, _, said := r.push(t.Context(), "-rollback="+string(ids[0])); code != exitFailed || !strings.Contains(said, "it was dropped") {
		t.Errorf("a rollback to a dropped release: %d, %s", code, said)
	}
	if d := r.gc(); len(d.Dropped) != 0 || d.Deleted != 0 {
		t.Errorf("a second time: %+v", d)
	}
	r.pull()
	r.age(aDay, "m/")
	dry = r.gc("-dry-run")
	d = r.gc()
	// Of each dropped release a tombstone, packs and a delta; but the first has no delta, and a pack of it is where "a" is.
	if d.Deleted < 7 || d.DeletedBytes < 18<<20 || d.Kept != 2 || dry.Deleted != d.Deleted || dry.DeletedBytes != d.DeletedBytes {
		t.Errorf("%+v, dry %+v", d, dry)
	}
	for _, key := range r.objects() {
		if strings.HasPrefix(key, "m/") && key != "m/"+string(ids[3]) && key != "m/"+string(ids[4]) {
			t.Errorf("%q is still there", key)
		}
	}
	r.pull()
	if code, _, said := r.push(t.Context(), "-rollback="+string(ids[3])); code != exitDone {
		t.Errorf("a kept release: %d, %s", code, said)
	}
	r.contents(r.manifest(r.pointer()))
}

func TestWhatSomebodyNamesIsNeverDropped(t *testing.T) {
	head := fleet.Head{
		Release: "opened", CommittedRelease: "committed",
		Good: fleet.Target{Release: "good"}, Before: fleet.Target{Release: "before"},
	}
	v := view{Pointer: release.Pointer{Release: "pointer"}, Head: head, Members: []fleet.Member{
		{Vote: fleet.Vote{Release: "voted"}}, {Active: fleet.Active{Release: "active"}, Missed: 9},
	}}
	for _, id := range []release.ID{"pointer", "opened", "committed", "good", "before", "voted", "active"} {
		if !v.named()[id] {
			t.Errorf("%q is not named", id)
		}
	}
	if v.named()["other"] {
		t.Error("everything is named")
	}
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.settings("keep_remote: 2\n")
	ids := r.series(4)
	if code, _, said := r.push(t.Context(), "-rollback="+string(ids[0])); code != exitDone {
		t.Fatal(said)
	}
	r.age(aDay, "")
	if d := r.gc(); !slices.Equal(d.Dropped, ids[1:2]) || d.Kept != 3 {
		t.Errorf("%+v, want only %s dropped", d, ids[1])
	}
	r.contents(r.manifest(r.pointer()))
}

func TestARollbackAndACleanUpInTheSameMomentLoseNothing(t *testing.T) {
	for _, first := range []string{"clean-up", "rollback"} {
		r := newPackedRig(t, map[string]string{"a": "1"})
		r.settings("keep_remote: 2\n")
		oldest := r.series(3)[0]
		r.age(aDay, "")
		during := map[string]string{"clean-up": "/shop/m/" + string(oldest), "rollback": "/shop/latest-deploy"}[first]
		once := false
		r.wire.lets(func(request string, _ *http.Request) bool {
			if strings.HasPrefix(request, "PUT") && strings.HasSuffix(request, during) && !once {
				once = true
				args := map[string][]string{"clean-up": {"-rollback=" + string(oldest)}, "rollback": {"-gc"}}[first]
				if code, _, said := r.push(t.Context(), args...); code != exitDone {
					t.Errorf("%s: %s", first, said)
				}
			}
			return true
		})
		args := map[string][]string{"rollback": {"-rollback=" + string(oldest)}, "clean-up": {"-gc"}}[first]
		if code, _, said := r.push(t.Context(), args...); code != exitDone || !once {
			t.Fatalf("%s: %d %s", first, code, said)
		}
		r.wire.lets(nil)
		p := r.pointer()
		if p.Release != oldest {
			t.Fatalf("%s: the pointer names %s", first, p.Release)
		}
		r.contents(r.manifest(p))
		r.age(aDay, "")
		r.gc()
		r.contents(r.manifest(p))
	}
}

func TestACleanUpThatDiedGoesOn(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.settings("keep_remote: 2\n")
	r.series(5)
	r.age(aDay, "")
	var puts, deletes atomic.Int64
	r.wire.lets(func(request string, _ *http.Request) bool {
		return !strings.HasPrefix(request, "PUT") || puts.Add(1) == 1 // one tombstone comes through
	})
	if code, _, said := r.push(t.Context(), "-gc"); code != exitFailed {
		t.Fatalf("%d: %s", code, said)
	}
	r.wire.lets(nil)
	if d := r.gc(); len(d.Dropped) != 2 || d.Kept != 2 {
		t.Errorf("after a death among the tombstones: %+v", d)
	}
	r.age(aDay, "m/")
	r.wire.lets(func(request string, _ *http.Request) bool {
		return !strings.HasPrefix(request, "DELETE") || deletes.Add(1) == 1
	})
	if code, _, said := r.push(t.Context(), "-gc"); code != exitFailed {
		t.Fatalf("%d: %s", code, said)
	}
	r.wire.lets(nil)
	if n := len(matching(r.objects(), "m/")); n != 5 {
		t.Errorf("%d manifests and tombstones, want all 5 while packs are left", n)
	}
	r.gc()
	if n := len(matching(r.objects(), "m/")); n != 2 {
		t.Errorf("%d manifests and tombstones, want 2", n)
	}
	r.pull()
}

func TestWhatIsForeignOrUnknownStaysAndStopsTheCleanUp(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.settings("keep_remote: 2\n")
	r.series(4)
	foreign := []string{"uploads/cat.jpg", "notes.txt", "p/README", "d/x", "2026-11-20_99-99-99/a", "v1.2.3/index.php", "m/.hidden"}
	for _, key := range foreign {
		name := filepath.Join(r.bucket, "shop", key)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("mine"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	newer := filepath.Join(r.bucket, "shop/m/2000-01-01_00-00-00")
	if err := os.WriteFile(newer, []byte("s3pdman9, compressed by a method that nobody knows yet"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.age(aDay, "")
	before := r.objects()
	code, _, said := r.push(t.Context(), "-gc")
	if code != exitFailed || !strings.Contains(said, `read manifest "2000-01-01_00-00-00"`) || !strings.Contains(said, "hint: a newer version") {
		t.Errorf("%d: %s", code, said)
	}
	if after := r.objects(); !slices.Equal(before, after) {
		t.Errorf("something went although a manifest is unknown: %q", after)
	}
	if code, out, said := r.push(t.Context(), "-releases"); code != exitDone || !strings.Contains(said, "2000-01-01") || strings.Count(out, "\n") < 5 {
		t.Errorf("-releases: %d %s %s", code, out, said)
	}
	if err := os.Remove(newer); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.gc()
		r.age(aDay, "")
	}
	after := r.objects()
	for _, key := range foreign {
		if !slices.Contains(after, key) {
			t.Errorf("%q is gone", key)
		}
	}
	if n := len(matching(after, "m/20")); n != 2 {
		t.Errorf("%d manifests, want 2", n)
	}
	r.pull()
}

func TestPlainReleasesAreCleanedUpToo(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1", "lib/b": "2"})
	r.settings("keep_remote: 2\n")
	var ids []release.ID
	for i := range 4 {
		r.write("a", fmt.Sprint("version ", i))
		result, _ := r.deploy("-layout=plain")
		ids = append(ids, result.Release)
	}
	r.age(aDay, "")
	if d := r.gc(); !slices.Equal(d.Dropped, []release.ID{ids[1], ids[0]}) || d.Deleted != 0 {
		t.Errorf("%+v", d)
	}
	if code, _, said := r.push(t.Context(), "-rollback="+string(ids[0])); code != exitFailed || !strings.Contains(said, "it was dropped") {
		t.Errorf("a rollback to a dropped release: %d, %s", code, said)
	}
	r.age(aDay, "m/")
	if d := r.gc(); len(d.Cleared) != 2 || d.Deleted != 6 { // two files each, and the tombstones
		t.Errorf("%+v", d)
	}
	left := r.objects()
	if len(left) != 5 || len(matching(left, string(ids[3])+"/")) != 2 || len(matching(left, string(ids[2])+"/")) != 2 {
		t.Errorf("left: %q", left)
	}
}

func TestPushesCleanUpByThemselvesAndNeverFailForIt(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.settings("keep_remote: 2\n")
	ids := r.series(4)
	r.age(aDay, "")
	forget := func() {
		if err := os.RemoveAll(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "s3-pull-deploy", "cleaned")); err != nil {
			t.Fatal(err)
		}
	}
	r.write("a", "2")
	if _, _, said := r.push(t.Context(), "-deploy="+r.dir); said != "" || r.dropped(ids[0]) {
		t.Errorf("within the hour it cleaned up again: %q", said)
	}
	forget()
	r.wire.lets(func(request string, _ *http.Request) bool { return !strings.HasSuffix(request, " shop/p/") })
	r.write("a", "3")
	code, _, said := r.push(t.Context(), "-deploy="+r.dir)
	if code != exitDone || !strings.Contains(said, "push: warning: the bucket was not cleaned up: list") || !r.dropped(ids[0]) {
		t.Errorf("exit code %d: %s", code, said)
	}
	r.wire.lets(nil)
	r.age(aDay, "m/")
	forget()
	r.write("a", "4")
	if code, _, said := r.push(t.Context(), "-deploy="+r.dir); code != exitDone || said != "" {
		t.Errorf("exit code %d: %s", code, said)
	}
	if matching(r.objects(), "m/"+string(ids[0])) != nil {
		t.Error("the tombstone is still there")
	}
	r.pull()
}

// dropped says whether there is a tombstone.
func (r *packedRig) dropped(id release.ID) bool {
	r.Helper()
	found, err := r.store.FindManifest(r.Context(), id)
	if err != nil {
		r.Fatal(err)
	}
	return found.Dropped
}

func TestNothingIsCleanedWhereNobodyCanTellWhatIsNeeded(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	if code, _, said := r.push(t.Context(), "-gc"); code != exitFailed || !strings.Contains(said, "there is no pointer") {
		t.Errorf("without a pointer: %d %s", code, said)
	}
	r.deploy()
	read, err := r.store.Pointer(t.Context(), "")
	if err == nil {
		_, err = r.store.WritePointer(t.Context(), []byte("garbage"), read.ETag)
	}
	if err != nil {
		t.Fatal(err)
	}
	if code, _, said := r.push(t.Context(), "-gc"); code != exitFailed || !strings.Contains(said, "read pointer: pointer") {
		t.Errorf("with a pointer that is none: %d %s", code, said)
	}
}

func TestWhatAPushInFlightReliesOnStaysWhenItsReleaseIsDropped(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1", "big": noise(1, 9<<20)})
	r.settings("keep_remote: 2\n")
	first, _ := r.deploy()
	if err := os.Remove(filepath.Join(r.dir, "big")); err != nil {
		t.Fatal(err)
	}
	r.deploy()
	r.age(aDay, "")
	r.write("back", noise(1, 9<<20)) // which is in a pack of the first release, and of no other
	other := plant(t, map[string]string{"x": "1"})
	var mine string
	r.wire.lets(func(request string, _ *http.Request) bool {
		if _, id, is := strings.Cut(request, "/shop/m/"); is && strings.HasPrefix(request, "PUT") && mine == "" {
			mine = id // two others overtake it, in other seconds, and a clean-up follows
			if err := waitUntil(t.Context(), time.Now().Truncate(time.Second).Add(time.Second)); err != nil {
				t.Error(err)
			}
			for i := range 2 {
				if err := os.WriteFile(filepath.Join(other, "x"), fmt.Append(nil, i), 0o644); err != nil {
					t.Error(err)
				}
				if code, _, said := r.push(t.Context(), "-deploy="+other); code != exitDone {
					t.Error(said)
				}
			}
			for range 2 {
				r.gc()
			}
			if !r.dropped(first.Release) {
				t.Error("the first release was not dropped")
			}
		}
		return true
	})
	code, _, said := r.push(t.Context(), "-deploy="+r.dir)
	r.wire.lets(nil)
	if code != exitConflict || mine == "" {
		t.Fatalf("exit code %d: %s", code, said)
	}
	// It lost, but its manifest is there, and later pushes build on it.
	whole := func() {
		found, err := r.store.FindManifest(t.Context(), release.ID(mine))
		if err != nil {
			t.Fatal(err)
		}
		m, err := release.ParseManifest(found.Object)
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range r.contents(m) {
			if e := &m.Entries[i]; e.Kind == release.File && e.Verify(text) != nil {
				t.Errorf("%q is not whole", e.Path)
			}
		}
	}
	whole()
	r.age(aDay, "m/"+string(first.Release))
	r.gc()
	whole()
}

func TestACleanUpThatSleptLeavesItsWorkToTheNext(t *testing.T) {
	const grace = 8 * time.Second
	for _, moment := range []string{" shop/p/", "/shop/p/"} { // at the list, or at the last look at a pack
		r := newPackedRig(t, map[string]string{"a": "1"})
		r.deploy()
		orphan := noise(9, 1000)
		sum := release.Sum(sha256.Sum256([]byte(orphan)))
		if err := r.store.PutPack(t.Context(), sum, strings.NewReader(orphan), int64(len(orphan))); err != nil {
			t.Fatal(err)
		}
		r.age(2*grace, "")
		var slept atomic.Bool
		r.wire.lets(func(request string, _ *http.Request) bool {
			if strings.Contains(request, moment) && slept.CompareAndSwap(false, true) {
				wakes := time.Now().Add(grace/4 + 2*time.Second) // its clock has whole seconds
				r.write("big", noise(1, 9<<20))
				r.deploy() // somebody else's
				r.age(2*grace, "")
				pause(t.Context(), time.Until(wakes))
			}
			return true
		})
		_, err := r.session(t.Context(), func(s *session) { s.grace = grace }, "-gc")
		r.wire.lets(nil)
		stale := errors.Is(err, store.ErrStale) && strings.Contains(hint(err), "slept meanwhile")
		late := moment == "/shop/p/" && errors.Is(err, store.ErrUnavailable) // the deploy alone took what a deletion may
		if !stale && !late {
			t.Errorf("%s: %v", moment, err)
		}
		if packs := matching(r.objects(), "p/"); len(packs) < 2 || !slices.Contains(packs, "p/"+sum.String()) {
			t.Errorf("%s: only %q are left", moment, packs)
		}
		r.age(aDay, "")
		r.gc()
		if packs := matching(r.objects(), "p/"); slices.Contains(packs, "p/"+sum.String()) {
			t.Errorf("%s: nobody names the pack, and it is left among %q", moment, packs)
		}
		r.pull()
	}
}

func TestADroppedReleaseThatIsNamedAgainStays(t *testing.T) {
	for _, layout := range []string{"plain", "packed"} {
		r := newPackedRig(t, map[string]string{"a": "1"})
		r.settings("keep_remote: 2\n")
		var pointers []release.Pointer
		for i := range 4 {
			r.write("a", fmt.Sprint("version ", i))
			if layout == "packed" {
				r.write("big", noise(byte(i), 9<<20))
			}
			r.deploy("-layout=" + layout)
			pointers = append(pointers, r.pointer())
		}
		var own []string // the packs of the first release
		if first := pointers[0]; layout == "packed" {
			for _, src := range r.manifest(first).Sources {
				own = append(own, src.Key())
			}
		}
		r.age(aDay, "")
		r.gc()
		r.age(aDay, "")
		r.back(pointers[0]) // by somebody who knows no tombstones
		if d := r.gc("-dry-run"); slices.Contains(d.Cleared, pointers[0].Release) {
			t.Errorf("%s: a dry run would delete it: %+v", layout, d)
		}
		code, out, said := r.push(t.Context(), "-gc")
		if code != exitDone || !strings.Contains(said, "push: warning: "+string(pointers[0].Release)+" was dropped, but the pointer") {
			t.Errorf("%s: exit code %d: %s", layout, code, said)
		}
		if layout == "plain" {
			if _, err := r.store.FindManifest(t.Context(), pointers[0].Release); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("the tombstone stays: %v", err)
			}
			if strings.Contains(out, string(pointers[0].Release)) || !strings.Contains(out, string(pointers[1].Release)) {
				t.Errorf("it said %q", out)
			}
			own = matching(r.objects(), string(pointers[0].Release)+"/a")
		} else if !r.dropped(pointers[0].Release) {
			t.Error("where is the tombstone?")
		}
		for _, key := range own {
			if !slices.Contains(r.objects(), key) {
				t.Errorf("%s: %q is gone", layout, key)
			}
		}
		if len(own) == 0 || matching(r.objects(), "m/"+string(pointers[1].Release)) != nil {
			t.Errorf("%s: kept of the first: %q, and all: %q", layout, own, r.objects())
		}
	}
}

// back puts the pointer to an earlier release, as an older tool does.
func (r *packedRig) back(p release.Pointer) {
	r.Helper()
	p.Sequence = r.pointer().Sequence + 1
	read, err := r.store.Pointer(r.Context(), "")
	if err == nil {
		_, err = r.store.WritePointer(r.Context(), p.Text(), read.ETag)
	}
	if err != nil {
		r.Fatal(err)
	}
}
