package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/release"
)

// readRange reads one range to its end.
func readRange(s *Store, src release.Source, offset, length int64) (string, error) {
	r, err := s.OpenRange(context.Background(), src, offset, length)
	if err != nil {
		return "", err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	return string(text), err
}

func TestRangeIsExactlyWhatWasAskedFor(t *testing.T) {
	o, server := options(t)
	s := fast(o)
	text := big(2 << 20)
	pack := putPack(t, s, text)
	if err := s.PutDelta(t.Context(), rel, parent, []byte(text)); err != nil {
		t.Fatal(err)
	}
	delta := release.Source{Release: rel, Parent: parent}
	for _, src := range []release.Source{pack, delta} {
		for _, x := range [][2]int64{{0, 1}, {8, 1 << 20}, {1<<20 + 1, 1<<20 - 1}, {0, 2 << 20}} {
			got, err := readRange(s, src, x[0], x[1])
			if err != nil || got != text[x[0]:x[0]+x[1]] {
				t.Errorf("%v of %s: %d bytes, %v", x, src.Key(), len(got), err)
			}
		}
	}
	_, err := readRange(s, pack, 2<<20-5, 10)
	wantErr(t, err, ErrDamaged, `from byte 2097147: get object: contents are damaged: 5 bytes instead of 10`)
	_, err = readRange(s, pack, 2<<20, 10)
	wantErr(t, err, ErrDamaged, "it ends before the range that was asked for")
	_, err = readRange(s, pack, 0, 0)
	wantErr(t, err, ErrDamaged, "a range of 0 bytes")
	_, err = readRange(s, release.Source{}, 8, 1)
	wantErr(t, err, ErrNotFound, `read pack "0000`)

	var gets atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		gets.Add(1)
		w.Header().Set("X-Amz-Checksum-Sha256", base64.StdEncoding.EncodeToString(pack.Pack[:])) // as some servers do
		next.ServeHTTP(&cutter{w, 300_000}, r)
	})
	got, err := readRange(fast(o), pack, 1000, 1_000_000)
	if err != nil || got != text[1000:1_001_000] || gets.Load() != 4 {
		t.Errorf("with cuts: %d bytes in %d requests, %v", len(got), gets.Load(), err)
	}
	gets.Store(0)
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		gets.Add(1)
		r.Header.Del("Range") // a server that does not know ranges answers with everything
		fmt.Fprint(w, text)
	})
	_, err = readRange(fast(o), pack, 1000, 1_000_000)
	wantErr(t, err, ErrUnavailable, `asked from byte 1000, got ""`)
}

func TestRangeThatStandsStillIsCutAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Config: configWith("k", "s"), Bucket: "b", Site: "promo"}
		var asked []string
		o.Config.HTTPClient = doer(func(req *http.Request) (*http.Response, error) {
			asked = append(asked, req.Header.Get("Range"))
			pause := time.Hour
			if len(asked) > 1 {
				pause = 10 * time.Second
			}
			head := io.Reader(strings.NewReader("x"))
			body := struct {
				io.Reader
				io.Closer
			}{io.MultiReader(head, &slow{req.Context(), pause, 11 - len(asked)}), http.NoBody}
			var first, last int64
			if _, err := fmt.Sscanf(asked[len(asked)-1], "bytes=%d-%d", &first, &last); err != nil {
				return nil, err
			}
			return &http.Response{StatusCode: 206, Body: body, ContentLength: last - first + 1, Header: http.Header{
				"Content-Range": {fmt.Sprintf("bytes %d-%d/1000", first, last)}, "Content-Length": {fmt.Sprint(last - first + 1)},
			}}, nil
		})
		start := time.Now()
		got, err := readRange(New(o), release.Source{}, 100, 11)
		if err != nil || got != strings.Repeat("x", 11) {
			t.Errorf("%q, %v", got, err)
		}
		if len(asked) != 2 || asked[0] != "bytes=100-110" || asked[1] != "bytes=101-110" {
			t.Errorf("asked for %q", asked)
		}
		if d := time.Since(start); d < stallLimit || d > stallLimit+2*time.Minute {
			t.Errorf("took %s", d)
		}
	})
}

func TestParallelRangesShareTheirConnections(t *testing.T) {
	const workers, rounds = 8, 25
	text := big(workers * 100_000)
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	s := New(Options{Config: configWith("k", "s"), Endpoint: server.URL, Bucket: "b", Site: "promo"})
	errs := make(chan error, workers)
	for i := range int64(workers) {
		go func() {
			for range rounds {
				r, err := s.OpenRange(t.Context(), release.Source{}, i*100_000, 100_000)
				if err == nil {
					buf := make([]byte, 100_000) // as a reader of frames does: to the last byte and no further
					_, err = io.ReadFull(r, buf)
					err = errors.Join(err, r.Close())
					if err == nil && string(buf) != text[i*100_000:(i+1)*100_000] {
						err = fmt.Errorf("wrong bytes in range %d", i)
					}
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// A connection is idle a moment after its last byte was read; whoever asks in between opens another.
	// Without sharing it would be one for each range.
	if n := connections.Load(); n > workers*rounds/2 {
		t.Errorf("%d connections for %d ranges by %d workers", n, workers*rounds, workers)
	}
}
