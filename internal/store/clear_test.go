package store

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
)

func TestAPlainReleaseIsClearedOnlyAfterItsTombstoneIsOld(t *testing.T) {
	o, server := options(t)
	s := New(o)
	upload(t, s, "a.txt", "text")
	upload(t, s, "lib/b.txt", "more")
	other := release.ID("2026-11-21_00-00-00")
	if err := s.Upload(t.Context(), other, "a.txt", strings.NewReader("text"), 4); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Clear(t.Context(), rel, soon())
	wantErr(t, err, ErrNotFound, `clear release "2026-11-20_20-15-02"`)
	if err := s.DropPlain(t.Context(), rel); err != nil {
		t.Fatal(err)
	}
	if err := s.DropPlain(t.Context(), rel); err != nil {
		t.Errorf("a second time: %v", err)
	}
	_, _, err = s.Clear(t.Context(), rel, soon())
	wantErr(t, err, ErrYoung, "deletable after 24h0m0s")
	setAge(t, file(server.Dir, o, manifestKey(rel)), longAgo)
	setAge(t, file(server.Dir, o, string(rel)+"/a.txt"), longAgo)
	_, _, err = s.Clear(t.Context(), rel, soon())
	wantErr(t, err, ErrYoung, `lib/b.txt": object is too young`)
	if listing, err := s.List(t.Context(), rel); err != nil || len(listing) != 2 {
		t.Fatalf("%d objects left, %v", len(listing), err)
	}
	setAge(t, file(server.Dir, o, string(rel)+"/lib/b.txt"), longAgo)
	objects, size, err := s.Clear(t.Context(), rel, soon())
	if err != nil || objects != 2 || size != 8 {
		t.Errorf("%d objects, %d bytes, %v", objects, size, err)
	}
	if listing, err := s.List(t.Context(), rel); err != nil || len(listing) != 0 {
		t.Errorf("%v, %v", listing, err)
	}
	if listing, err := s.List(t.Context(), other); err != nil || len(listing) != 1 {
		t.Errorf("the other release lost something: %v, %v", listing, err)
	}
	if objects, _, err := s.Clear(t.Context(), rel, soon()); err != nil || objects != 0 {
		t.Errorf("again: %d objects, %v", objects, err)
	}
}

func TestNothingThatWasNotDroppedIsCleared(t *testing.T) {
	o, server := options(t)
	s := New(o)
	upload(t, s, "a.txt", "text")
	m := manifest(t, s, "manifest") // the same id in the packed layout
	setAge(t, file(server.Dir, o, m.Key), longAgo)
	_, _, err := s.Clear(t.Context(), rel, soon())
	wantErr(t, err, ErrExists, "it was not dropped")
	wantErr(t, s.DropPlain(t.Context(), rel), ErrExists, `drop release`)
	for _, id := range []release.ID{"", "m", "p", "../x", "latest-deploy"} {
		if _, _, err := s.Clear(t.Context(), id, soon()); err == nil || !strings.Contains(err.Error(), "release id") {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestARefusedDeletionOfAClearedReleaseIsAnError(t *testing.T) {
	o, server := options(t)
	s := New(o)
	upload(t, s, "a.txt", "text")
	if err := s.DropPlain(t.Context(), rel); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{manifestKey(rel), string(rel) + "/a.txt"} {
		setAge(t, file(server.Dir, o, key), longAgo)
	}
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPost {
			fmt.Fprint(w, "<DeleteResult><Error><Key>x/a.txt</Key><Code>AccessDenied</Code><Message>by policy</Message></Error></DeleteResult>")
			return
		}
		next.ServeHTTP(w, r)
	})
	objects, _, err := fast(o).Clear(t.Context(), rel, soon())
	wantErr(t, err, ErrDenied, `delete "x/a.txt": access denied: by policy`)
	if objects != 0 {
		t.Errorf("%d objects are said to be deleted", objects)
	}
}

func TestADropIsTakenBackOnlyWhileContentsAreSafe(t *testing.T) {
	o, server := options(t)
	s := New(o)
	m := manifest(t, s, "manifest")
	if err := s.Restore(t.Context(), rel, []byte("another")); err != nil {
		t.Errorf("nothing was dropped: %v", err)
	}
	if err := s.WriteTombstone(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	path := file(server.Dir, o, m.Key)
	setAge(t, path, Grace/2+time.Minute)
	wantErr(t, s.Restore(t.Context(), rel, []byte("manifest")), ErrNotFound, "dropped too long ago")
	setAge(t, path, Grace/2-time.Minute)
	if err := s.Restore(t.Context(), rel, []byte("manifest")); err != nil {
		t.Fatal(err)
	}
	if object, err := s.GetManifest(t.Context(), rel, content("manifest")); err != nil || string(object) != "manifest" {
		t.Errorf("%q, %v", object, err)
	}

	plain := release.ID("2026-11-21_00-00-00")
	if err := s.DropPlain(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := s.Restore(t.Context(), plain, nil); err != nil {
			t.Error(err)
		}
	}
	_, err := s.FindManifest(t.Context(), plain)
	wantErr(t, err, ErrNotFound, "")
}
