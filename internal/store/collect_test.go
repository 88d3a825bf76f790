package store

import (
	"crypto/sha256"
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

	"s3pulldeploy/internal/release"
)

const longAgo = Grace + time.Hour

// one returns the only object of an inventory.
func one(t *testing.T, inv Inventory, err error) Stored {
	t.Helper()
	if err != nil || len(inv.Objects) != 1 {
		t.Fatalf("want one object, got %+v, %v", inv.Objects, err)
	}
	return inv.Objects[0]
}

// manifest puts one there and returns it as listed.
func manifest(t *testing.T, s *Store, text string) Stored {
	t.Helper()
	if err := s.PutManifest(t.Context(), rel, []byte(text)); err != nil {
		t.Fatal(err)
	}
	inv, err := s.Manifests(t.Context())
	return one(t, inv, err)
}

// lossy lets requests of a method through and breaks the connection instead of answering the first.
func lossy(t *testing.T, endpoint, method string) string {
	var lost atomic.Bool
	return through(t, endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == method && lost.CompareAndSwap(false, true) {
			next.ServeHTTP(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}

// discard is an answer that nobody gets.
type discard struct{ h http.Header }

func (d discard) Header() http.Header       { return d.h }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

func TestInventoryHasEveryPageWithTimesAndNothingForeign(t *testing.T) {
	o, server := options(t)
	s := New(o)
	const packs = 2_345
	dir := file(server.Dir, o, "p")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	names := []string{"README", strings.Repeat("A", 64), strings.Repeat("a", 63), strings.Repeat("g", 64)} // foreign
	for i := range packs {
		names = append(names, release.Sum(sha256.Sum256(fmt.Append(nil, i))).String())
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("1234567"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setAge(t, filepath.Join(dir, names[4]), longAgo)
	inv, err := s.Packs(t.Context())
	if err != nil || len(inv.Objects) != packs {
		t.Fatalf("%d packs, want %d, %v", len(inv.Objects), packs, err)
	}
	old := 0
	for _, p := range inv.Objects {
		if p.Size != 7 || p.Release != "" || !slices.Contains(names, strings.TrimPrefix(p.Key, "p/")) {
			t.Fatalf("%+v", p)
		}
		if a := inv.Age(p); a > Grace {
			old++
		} else if a > time.Hour || a < -time.Hour {
			t.Errorf("%s is %s old", p.Key, a)
		}
	}
	if old != 1 {
		t.Errorf("%d old packs, want 1", old)
	}
	if age := (Inventory{}).Age(inv.Objects[0]); age < Grace {
		t.Errorf("without S3's clock an object is only %s old: a push would rely on it", age)
	}

	if err := errors.Join(s.PutDelta(t.Context(), rel, parent, []byte("d")), s.PutDelta(t.Context(), rel, "x2", []byte("d"))); err != nil {
		t.Fatal(err)
	}
	m := manifest(t, s, "m")
	if m.Key != "m/"+string(rel) || m.Release != rel || m.ETag == "" {
		t.Errorf("%+v", m)
	}
	inv, err = s.Deltas(t.Context())
	if err != nil || len(inv.Objects) != 2 || inv.Objects[0].Key != "d/2026-11-20_20-15-02/2026-11-19_08-00-00" || inv.Objects[0].Release != rel {
		t.Errorf("%+v, %v", inv, err)
	}
	o.Bucket = "no-such-bucket"
	_, err = New(o).Packs(t.Context())
	wantErr(t, err, ErrNoBucket, `list "apps/promo/p/"`)
}

func TestDroppedReleaseLeavesATombstoneOfWhatItWasMadeOf(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	_, err := s.FindManifest(t.Context(), rel)
	wantErr(t, err, ErrNotFound, `read manifest "2026-11-20_20-15-02"`)
	m := manifest(t, s, "manifest")
	found, err := s.FindManifest(t.Context(), rel)
	if err != nil || string(found.Object) != "manifest" || found.Content != content("manifest") || found.Dropped || found.Stored.ETag != m.ETag {
		t.Fatalf("%+v, %v", found, err)
	}
	sources := []release.Source{{Release: rel, Parent: parent, End: 8}, {Pack: release.Sum{1}, End: 100}, {Pack: release.Sum{1}, End: 90}}
	want := []string{sources[0].Key(), sources[1].Key()}
	if err := s.WriteTombstone(t.Context(), m, sources); err != nil {
		t.Fatal(err)
	}
	found, err = s.FindManifest(t.Context(), rel)
	if err != nil || !found.Dropped || found.Object != nil || !slices.Equal(found.Keys, want) {
		t.Errorf("%+v, %v", found, err)
	}
	if err := s.WriteTombstone(t.Context(), m, sources); err != nil {
		t.Errorf("the same again: %v", err)
	}
	wantErr(t, s.WriteTombstone(t.Context(), m, sources[:1]), ErrChanged, `drop release "2026-11-20_20-15-02": put object: object has changed`)
	wantErr(t, s.PutManifest(t.Context(), rel, []byte("manifest")), ErrExists, "")
	_, err = s.GetManifest(t.Context(), rel, content("manifest"))
	wantErr(t, err, ErrDamaged, "instead of 8")
	for _, m := range []Stored{{}, {Key: "latest-deploy", ETag: m.ETag}, {Key: m.Key, Release: rel}, {Key: m.Key, Release: "x2", ETag: m.ETag}} {
		if err := s.WriteTombstone(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), "is no manifest that was listed") {
			t.Errorf("%+v: %v", m, err)
		}
	}
	missing := Stored{Key: "m/x2", Release: "x2", ETag: m.ETag}
	wantErr(t, s.WriteTombstone(t.Context(), missing, nil), ErrNotFound, "")
}

func TestTombstoneWhoseAnswerWasLostIsASuccess(t *testing.T) {
	o, server := options(t)
	m := manifest(t, New(o), "manifest")
	o.Endpoint = lossy(t, server.Endpoint, http.MethodPut)
	s := fast(o)
	if err := s.WriteTombstone(t.Context(), m, nil); err != nil {
		t.Error(err)
	}
	if found, err := s.FindManifest(t.Context(), rel); err != nil || !found.Dropped || len(found.Keys) != 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestTombstonesThatAreNotOursAreDamaged(t *testing.T) {
	whole := string(tombstone([]release.Source{{Pack: release.Sum{1}}}))
	if keys, err := parseTombstone([]byte(whole)); err != nil || len(keys) != 1 {
		t.Fatalf("%q, %v", keys, err)
	}
	for _, text := range []string{
		tombstoneMagic, tombstoneMagic + "x\n", whole[:len(whole)-2] + "\n", whole + "\n",
		whole + "m/x2\n", whole + "latest-deploy\n", whole + "d/../x2\n", whole + "p/..\n",
	} {
		if keys, err := parseTombstone([]byte(text)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %q, %v", text, keys, err)
		}
	}
}

func FuzzTombstone(f *testing.F) {
	f.Add([]byte(tombstoneMagic + "\n"))
	f.Add(tombstone([]release.Source{{Pack: release.Sum{1}}, {Release: rel, Parent: parent}}))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseTombstone(text)
		if err != nil {
			return
		}
		if again := strings.Join(append([]string{tombstoneMagic}, keys...), "\n") + "\n"; again != string(text) {
			t.Errorf("%q was taken for %q", text, again)
		}
		for _, key := range keys {
			if !strings.HasPrefix(key, "p/") && !strings.HasPrefix(key, "d/") || strings.Contains(key, "..") && strings.HasPrefix(key, "p/") {
				t.Errorf("%q passed for a pack or delta", key)
			}
		}
	})
}

func TestOnlyOldObjectsAsListedAreDeleted(t *testing.T) {
	o, server := options(t)
	s := New(o)
	pack := putPack(t, s, "pack")
	inv, err := s.Packs(t.Context())
	listed := one(t, inv, err)
	wantErr(t, s.Delete(t.Context(), listed, soon()), ErrYoung, "deletable after 24h0m0s")
	setAge(t, file(server.Dir, o, pack.Key()), longAgo)
	other := listed
	other.ETag = strings.Repeat("0", 32)
	wantErr(t, s.Delete(t.Context(), other, soon()), ErrChanged, `delete "p/`)
	if _, err := s.HasPack(t.Context(), pack.Pack); err != nil {
		t.Fatalf("it is gone: %v", err)
	}
	denied := o
	denied.Config = configWith(server.AccessKey, "wrong")
	wantErr(t, New(denied).Delete(t.Context(), listed, soon()), ErrDenied, "")
	if err := s.Delete(t.Context(), listed, soon()); err != nil {
		t.Fatal(err)
	}
	_, err = s.HasPack(t.Context(), pack.Pack)
	wantErr(t, err, ErrNotFound, "")
	if err := s.Delete(t.Context(), listed, soon()); err != nil {
		t.Errorf("a second time: %v", err)
	}

	if _, err := s.WritePointer(t.Context(), []byte("x"), ""); err != nil {
		t.Fatal(err)
	}
	upload(t, s, "a.txt", "text")
	before := s.Counts().Requests
	for _, key := range []string{"latest-deploy", string(rel) + "/a.txt", "m/../latest-deploy", "p/", "", "d/x2"} {
		err := s.Delete(t.Context(), Stored{Key: key, ETag: listed.ETag}, soon())
		if err == nil || !strings.Contains(err.Error(), "not an object of the packed layout") {
			t.Errorf("%q: %v", key, err)
		}
	}
	if n := s.Counts().Requests - before; n != 0 {
		t.Errorf("%d requests for objects that must not be touched", n)
	}
}

// soon is until when what a test has just listed holds.
func soon() time.Time { return time.Now().Add(time.Hour) }

func TestNothingIsDeletedByAListThatIsOutOfDate(t *testing.T) {
	o, server := options(t)
	s := New(o)
	pack := putPack(t, s, "pack")
	upload(t, s, "a.txt", "text")
	if err := s.DropPlain(t.Context(), rel); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{pack.Key(), manifestKey(rel), string(rel) + "/a.txt"} {
		setAge(t, file(server.Dir, o, key), longAgo)
	}
	inv, err := s.Packs(t.Context())
	listed := one(t, inv, err)
	if held := s.Holds(inv.Date).Sub(inv.Date); held != Grace/4 {
		t.Errorf("a list holds for %s", held)
	}
	late := inv.Date.Add(-time.Second)
	wantErr(t, s.Delete(t.Context(), listed, late), ErrStale, "it held until")
	_, _, err = s.Clear(t.Context(), rel, late)
	wantErr(t, err, ErrStale, "clear release")
	if _, err := s.HasPack(t.Context(), pack.Pack); err != nil {
		t.Error(err)
	}
	if listing, err := s.List(t.Context(), rel); err != nil || len(listing) != 1 {
		t.Errorf("%v, %v", listing, err)
	}
}

func TestADeletionOfAMachineThatSleptIsNotSent(t *testing.T) {
	o, _ := options(t)
	s := fast(o)
	pack := putPack(t, s, "pack")
	before := s.Counts().Requests
	ctx := onTheWall(t.Context(), time.Now().Add(-time.Second)) // its own deadline did not move
	if err := s.erase(ctx, Stored{Key: pack.Key(), ETag: "x"}); err == nil {
		t.Error("no error")
	}
	if n := s.Counts().Requests - before; n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestManifestIsDeletedOnlyAsAnOldTombstone(t *testing.T) {
	o, server := options(t)
	s := New(o)
	m := manifest(t, s, "manifest")
	path := file(server.Dir, o, m.Key)
	setAge(t, path, longAgo)
	wantErr(t, s.Delete(t.Context(), m, soon()), ErrExists, "a manifest, and no tombstone")
	if err := s.WriteTombstone(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Delete(t.Context(), m, soon()), ErrChanged, "")
	inv, err := s.Manifests(t.Context())
	grave := one(t, inv, err)
	wantErr(t, s.Delete(t.Context(), grave, soon()), ErrYoung, "")
	setAge(t, path, longAgo)
	if err := s.Delete(t.Context(), grave, soon()); err != nil {
		t.Error(err)
	}
	if inv, err := s.Manifests(t.Context()); err != nil || len(inv.Objects) != 0 {
		t.Errorf("%+v, %v", inv, err)
	}
}

func TestDeleteIsConditionalAndCopesWithLostAnswersAndOldServers(t *testing.T) {
	for _, x := range []struct {
		name  string
		proxy func(t *testing.T, endpoint string) string
	}{
		{"lost answer", func(t *testing.T, endpoint string) string { return lossy(t, endpoint, http.MethodDelete) }},
		{"server without conditions", func(t *testing.T, endpoint string) string {
			return through(t, endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("If-Match") != "" {
					w.WriteHeader(http.StatusNotImplemented)
					fmt.Fprint(w, xml("NotImplemented", "A header you provided implies functionality that is not implemented."))
					return
				}
				next.ServeHTTP(w, r)
			})
		}},
		{"lost answer, and a server that refuses what is gone", func(t *testing.T, endpoint string) string {
			var deletes atomic.Int32
			return through(t, endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == http.MethodDelete && deletes.Add(1) == 1 {
					next.ServeHTTP(discard{http.Header{}}, r)
					panic(http.ErrAbortHandler)
				}
				if r.Method == http.MethodDelete {
					w.WriteHeader(http.StatusPreconditionFailed)
					fmt.Fprint(w, xml("PreconditionFailed", "x"))
					return
				}
				next.ServeHTTP(w, r)
			})
		}},
	} {
		o, server := options(t)
		pack := putPack(t, New(o), "pack")
		setAge(t, file(server.Dir, o, pack.Key()), longAgo)
		o.Endpoint = x.proxy(t, server.Endpoint)
		s := fast(o)
		inv, err := s.Packs(t.Context())
		if err := s.Delete(t.Context(), one(t, inv, err), soon()); err != nil {
			t.Errorf("%s: %v", x.name, err)
		}
		if _, err := s.HasPack(t.Context(), pack.Pack); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: still there, %v", x.name, err)
		}
	}

	// Written anew between the last look and the deletion.
	o, server := options(t)
	s := New(o)
	if err := s.PutDelta(t.Context(), rel, parent, []byte("delta")); err != nil {
		t.Fatal(err)
	}
	path := file(server.Dir, o, "d/"+string(rel)+"/"+string(parent))
	setAge(t, path, longAgo)
	inv, err := s.Deltas(t.Context())
	listed := one(t, inv, err)
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodDelete {
			if err := errors.Join(os.Remove(path), s.PutDelta(t.Context(), rel, parent, []byte("another"))); err != nil {
				t.Error(err)
			}
		}
		next.ServeHTTP(w, r)
	})
	wantErr(t, fast(o).Delete(t.Context(), listed, soon()), ErrChanged, "delete object: object has changed")
	if text, err := s.GetDelta(t.Context(), rel, parent, content("another")); err != nil {
		t.Errorf("the new one is gone: %q, %v", text, err)
	}
}
