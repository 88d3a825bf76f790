package store

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/release"
)

func TestListingHasEveryPageAndNoDirectoryMarkers(t *testing.T) {
	o, server := options(t)
	const files = 2_345
	root := filepath.Join(server.Dir, o.Bucket, "apps/promo", string(rel), "d")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range files { // as another tool would have left them
		if err := os.WriteFile(filepath.Join(root, fmt.Sprintf("%05d", i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := New(o)
	upload(t, s, "empty/", "") // what a console makes of "create folder"
	upload(t, s, "empty.txt", "")
	before := s.Counts().Requests
	listing, err := s.List(t.Context(), rel)
	if err != nil {
		t.Fatal(err)
	}
	if len(listing) != files+1 {
		t.Errorf("%d objects, want %d", len(listing), files+1)
	}
	if pages := s.Counts().Requests - before; pages < 3 {
		t.Errorf("%d pages, want 3 or more", pages)
	}
	if o := listing[len(listing)-1]; o.Path != "empty.txt" || o.Size != 0 || strings.Contains(o.ETag, `"`) || o.Modified.IsZero() {
		t.Errorf("last object: %+v", o)
	}
}

func TestOddPathsSurvive(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	paths := []string{
		"a b/c d.txt", "plus+plus.txt", "100%.txt", "%2F%20", "ünï/日本語.php", "q?x=1&y=2#z", "it's \"quoted\".txt",
		"[brackets]{braces}", "semi;colon,comma=equals", "tilde~", "dollar$", "<tag>", "@home", "dots/...", "-dash", "emoji-😀",
	}
	slices.Sort(paths)
	for _, p := range paths {
		upload(t, s, p, "contents of "+p)
	}
	listing, err := s.List(t.Context(), rel)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, obj := range listing {
		got = append(got, obj.Path)
		if text, err := contents(s, obj); err != nil || text != "contents of "+obj.Path {
			t.Errorf("%q: %q, %v", obj.Path, text, err)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, paths) {
		t.Errorf("listed\n%q, want\n%q", got, paths)
	}
}

func TestListingThatWasCutIsAskedForAgain(t *testing.T) {
	o, server := options(t)
	upload(t, New(o), "a", "a")
	gets := 0
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if gets++; gets == 1 {
			next.ServeHTTP(&cutter{w, 200}, r)
		}
		next.ServeHTTP(w, r)
	})
	if obj := only(t, fast(o)); obj.Path != "a" || gets != 2 {
		t.Errorf("%+v after %d requests", obj, gets)
	}
}

func TestListingOfAnUnknownReleaseIsEmpty(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	upload(t, s, "a", "a")
	listing, err := s.List(t.Context(), rel[:len(rel)-1]) // a prefix of a name is another name
	if err != nil || len(listing) != 0 {
		t.Errorf("%v, %v", listing, err)
	}
}

func TestReleasesAreTheValidFoldersNewestFirst(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	for _, id := range []release.ID{"2026-01-02_00-00-00", "m", "2026-11-20_20-15-02", "d", ".hidden", "2025-12-31_23-59-59"} {
		if err := s.Upload(t.Context(), id, "x/y", strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.WritePointer(t.Context(), []byte("r"), ""); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Site = "promo-staging"
	upload(t, New(other), "x", "x")

	got, err := s.Releases(t.Context())
	want := []release.ID{"2026-11-20_20-15-02", "2026-01-02_00-00-00", "2025-12-31_23-59-59"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

func TestUploadAgainSucceedsForTheSameContentsOnly(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	upload(t, s, "a.php", "one")
	upload(t, s, "a.php", "one")
	err := s.Upload(t.Context(), rel, "a.php", strings.NewReader("two"), 3)
	wantErr(t, err, ErrExists, `upload "a.php": object exists with other contents`)
	err = s.Upload(t.Context(), rel, "a.php", strings.NewReader("three"), 5)
	wantErr(t, err, ErrExists, "with 3 bytes instead of 5")
	if text, err := contents(s, only(t, s)); text != "one" || err != nil {
		t.Errorf("the object is now %q, %v", text, err)
	}

	// An object that another tool wrote has no SHA-256 of ours; the server gives the ETag.
	plain := o
	plain.Config.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	upload(t, New(plain), "b.php", "one")
	upload(t, s, "b.php", "one")
	err = s.Upload(t.Context(), rel, "b.php", strings.NewReader("two"), 3)
	wantErr(t, err, ErrExists, "other contents")
}

func TestLostReplyOfAnUploadIsASuccess(t *testing.T) {
	o, server := options(t)
	puts := 0
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut {
			if puts++; puts == 1 {
				next.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
		}
		next.ServeHTTP(w, r)
	})
	upload(t, fast(o), "a.php", "one")
	if puts < 2 {
		t.Error("the upload was not repeated, so the test shows nothing")
	}
}

func TestUploadSaysWhatIsWrongWithTheFile(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	err := s.Upload(t.Context(), rel, "grown", strings.NewReader("four"), 3)
	wantErr(t, err, ErrChanged, "4 bytes instead of 3")
	err = s.Upload(t.Context(), rel, "huge", strings.NewReader(""), MaxUpload+1)
	wantErr(t, err, ErrTooLarge, `upload "huge": too large`)

	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("text"); err != nil {
		t.Fatal(err)
	}
	broken := &unreadable{ReadSeeker: file}
	err = s.Upload(t.Context(), rel, "broken", broken, 4)
	wantErr(t, err, errBroken, `upload "broken": read contents: broken disk`)
	file.Close()
	if listing, err := s.List(t.Context(), rel); err != nil || len(listing) != 0 {
		t.Errorf("something was written: %v, %v", listing, err)
	}
}
