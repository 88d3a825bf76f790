package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPointerIsCreatedOnceAndReplacedByWhoReadIt(t *testing.T) {
	o, _ := options(t)
	s, ctx := New(o), t.Context()
	_, err := s.Pointer(ctx, "")
	wantErr(t, err, ErrNotFound, `read pointer "apps/promo/latest-deploy": get object: not found`)

	first, err := s.WritePointer(ctx, []byte("r1\n1\n1"), "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.WritePointer(ctx, []byte("r2\n2\n1"), "")
	wantConflict(t, err, "r1\n1\n1")

	second, err := s.WritePointer(ctx, []byte("r2\n2\n1"), first)
	if err != nil || second == first {
		t.Fatalf("replace the pointer: ETag %q after %q, %v", second, first, err)
	}
	_, err = s.WritePointer(ctx, []byte("r3\n3\n1"), first)
	wantConflict(t, err, "r2\n2\n1")
	if !strings.Contains(err.Error(), `another push won: the pointer names "r2"`) {
		t.Errorf("the error does not name the winner: %v", err)
	}
}

func wantConflict(t *testing.T, err error, won string) {
	t.Helper()
	var conflict *ConflictError
	if !errors.As(err, &conflict) {
		t.Fatalf("want a conflict, got %v", err)
	}
	if string(conflict.Won.Text) != won || conflict.Won.ETag == "" && won != "" {
		t.Errorf("won %q with ETag %q, want %q", conflict.Won.Text, conflict.Won.ETag, won)
	}
}

func TestPointerThatWasRemovedIsAConflict(t *testing.T) {
	o, _ := options(t)
	_, err := New(o).WritePointer(t.Context(), []byte("r2\n2\n1"), "0123456789abcdef0123456789abcdef")
	wantConflict(t, err, "")
}

func TestUnchangedPointerIsNotSentAgainButItsDateIs(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	etag, err := s.WritePointer(t.Context(), []byte("r1\n1\n1"), "")
	if err != nil {
		t.Fatal(err)
	}
	read, err := s.Pointer(t.Context(), "")
	if err != nil || string(read.Text) != "r1\n1\n1" || read.ETag != etag {
		t.Fatalf("read %+v, %v; want what was written, ETag %q", read, err, etag)
	}
	same, err := s.Pointer(t.Context(), etag)
	wantErr(t, err, ErrNotModified, "")
	for _, date := range []time.Time{read.Date, same.Date} {
		if age := time.Since(date); age < -time.Minute || age > time.Minute {
			t.Errorf("the server's date is %v", date)
		}
	}
}

func TestRaceOfTwoWritersHasOneWinner(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	etag := ""
	for round := range 10 {
		var wins atomic.Int32
		var wait sync.WaitGroup
		for writer := range 2 {
			wait.Go(func() {
				_, err := s.WritePointer(t.Context(), fmt.Appendf(nil, "r%d\n%d\n1", writer, round+1), etag)
				var conflict *ConflictError
				switch {
				case err == nil:
					wins.Add(1)
				case !errors.As(err, &conflict):
					t.Errorf("round %d: the loser got %v", round, err)
				}
			})
		}
		wait.Wait()
		if n := wins.Load(); n != 1 {
			t.Fatalf("round %d: %d winners", round, n)
		}
		read, err := s.Pointer(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		etag = read.ETag
	}
}

func TestLostReplyOfAWriteThatHappenedIsASuccess(t *testing.T) {
	o, server := options(t)
	var puts atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut && puts.Add(1) == 1 {
			next.ServeHTTP(httptest.NewRecorder(), r) // done, and nobody is told
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	s := fast(o)
	etag, err := s.WritePointer(t.Context(), []byte("r1\n1\n1"), "")
	if err != nil || etag == "" {
		t.Fatalf("ETag %q, %v", etag, err)
	}
	if puts.Load() < 2 {
		t.Error("the write was not repeated, so the test shows nothing")
	}
	puts.Store(0)
	if _, err := s.WritePointer(t.Context(), []byte("r2\n2\n1"), etag); err != nil {
		t.Errorf("replace: %v", err)
	}
}

func TestInterruptedWriteThatHappenedIsASuccess(t *testing.T) {
	o, server := options(t)
	ctx, cancel := context.WithCancel(t.Context())
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut {
			next.ServeHTTP(httptest.NewRecorder(), r)
			cancel()
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	if _, err := fast(o).WritePointer(ctx, []byte("r1\n1\n1"), ""); err != nil {
		t.Fatal(err)
	}
}

func TestWriteThatNeverArrivedIsUnavailableAndNoConflict(t *testing.T) {
	o, server := options(t)
	s := New(o)
	etag, err := s.WritePointer(t.Context(), []byte("r1\n1\n1"), "")
	if err != nil {
		t.Fatal(err)
	}
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	_, err = fast(o).WritePointer(t.Context(), []byte("r2\n2\n1"), etag)
	wantErr(t, err, ErrUnavailable, `write pointer "apps/promo/latest-deploy": put object: S3 unavailable`)
	var conflict *ConflictError
	if errors.As(err, &conflict) {
		t.Errorf("nobody else wrote, but: %v", err)
	}
}

func TestPointerAboveTheLimitIsRefusedUnread(t *testing.T) {
	o, server := options(t)
	s := New(o)
	_, err := s.WritePointer(t.Context(), bytes.Repeat([]byte("x"), maxPointer+1), "")
	wantErr(t, err, ErrTooLarge, "4097 bytes")

	if _, err := s.WritePointer(t.Context(), bytes.Repeat([]byte("x"), maxPointer), ""); err != nil {
		t.Errorf("4096 bytes: %v", err)
	}
	if read, err := s.Pointer(t.Context(), ""); err != nil || len(read.Text) != maxPointer {
		t.Errorf("4096 bytes: read %d, %v", len(read.Text), err)
	}
	file := filepath.Join(server.Dir, o.Bucket, "apps/promo/latest-deploy")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Pointer(t.Context(), "")
	wantErr(t, err, ErrTooLarge, "above 4096 bytes")
}
