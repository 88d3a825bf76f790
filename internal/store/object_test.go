package store

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"s3pulldeploy/internal/release"
)

var errBroken = errors.New("broken disk")

// unreadable can be measured but not read.
type unreadable struct{ io.ReadSeeker }

func (u *unreadable) Read([]byte) (int, error) { return 0, errBroken }

// cutter breaks the connection of each GET after a number of bytes of its body.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left <= 0 {
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// big is a text of n bytes without a period that a mistake in an offset could hide in.
func big(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d\n", i)
	}
	return b.String()[:n]
}

func TestReaderGoesOnAfterCuts(t *testing.T) {
	o, server := options(t)
	text := big(9 << 20)
	upload(t, New(o), "big.bin", text)
	obj := only(t, New(o))
	var gets atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		gets.Add(1)
		next.ServeHTTP(&cutter{w, 5<<18 + 123}, r) // 1.25 MiB: more cuts than tries in a row
	})
	got, err := contents(fast(o), obj)
	if err != nil || got != text {
		t.Fatalf("%d of %d bytes, equal: %v, error %v", len(got), len(text), got == text, err)
	}
	if n := gets.Load(); n != 8 {
		t.Errorf("%d requests, want 8: one for each piece", n)
	}
}

func TestReaderGivesUpWhenItGetsNowhere(t *testing.T) {
	o, server := options(t)
	upload(t, New(o), "big.bin", big(1<<20))
	obj := only(t, New(o))
	var gets atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		gets.Add(1)
		next.ServeHTTP(&cutter{w, 1000}, r)
	})
	got, err := contents(fast(o), obj)
	wantErr(t, err, ErrUnavailable, `read object "big.bin": S3 unavailable: cut at byte 6000 of 1048576`)
	if gets.Load() != resumes+1 || len(got) != 6000 {
		t.Errorf("%d requests, %d bytes", gets.Load(), len(got))
	}
}

func TestObjectThatChangedBetweenTwoPiecesIsNotStitched(t *testing.T) {
	o, server := options(t)
	upload(t, New(o), "a.bin", big(1<<20))
	obj := only(t, New(o))
	file := filepath.Join(server.Dir, o.Bucket, "apps/promo", string(rel), "a.bin")
	var gets atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if gets.Add(1) == 1 {
			next.ServeHTTP(&cutter{w, 1000}, r)
			return
		}
		if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte(big(1 << 20)[1:]+"x"), 0o600)); err != nil {
			t.Error(err)
		}
		next.ServeHTTP(w, r)
	})
	direct := o
	direct.Endpoint = server.Endpoint
	_, err := contents(fast(o), obj)
	wantErr(t, err, ErrChanged, `read object "a.bin"`)
	_, err = contents(New(direct), obj)
	wantErr(t, err, ErrChanged, "get object: object has changed")
}

func TestWrongContentsUnderTheRightETagAreDamaged(t *testing.T) {
	o, server := options(t)
	o.Config.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired // only the ETag vouches for them
	o.Config.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	s := New(o)
	upload(t, s, "a.bin", big(100_000))
	obj := only(t, s)
	change := func(f func(body []byte) []byte) string {
		return through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			rec.Header().Del("Content-Length") // so that it does not give the change away
			maps.Copy(w.Header(), rec.Header())
			w.WriteHeader(rec.Code)
			http.NewResponseController(w).Flush()
			if _, err := w.Write(f(rec.Body.Bytes())); err != nil {
				t.Error(err)
			}
		})
	}
	for _, x := range []struct {
		name, want string
		f          func([]byte) []byte
	}{
		{"a flipped bit", "contents are damaged: MD5", func(b []byte) []byte { b[50_000] ^= 1; return b }},
		{"more bytes", "contents are damaged", func(b []byte) []byte { return append(b, 'x') }},
	} {
		o.Endpoint = change(x.f)
		_, err := contents(fast(o), obj)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	o.Endpoint = change(func(b []byte) []byte { return b })
	if _, err := contents(fast(o), obj); err != nil {
		t.Errorf("the right bytes: %v", err)
	}
}

func TestObjectOfAnotherSizeThanListedIsRefused(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	upload(t, s, "a", "four")
	obj := only(t, s)
	obj.Size = 5
	_, err := s.Open(t.Context(), rel, obj)
	wantErr(t, err, ErrDamaged, "4 bytes instead of 5")
	_, err = s.Open(t.Context(), rel, release.Object{Path: "gone", Size: 1, ETag: obj.ETag})
	wantErr(t, err, ErrNotFound, `read object "gone": get object: not found`)
}

func TestEmptyObjectIsRead(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	upload(t, s, "empty", "")
	if text, err := contents(s, only(t, s)); err != nil || text != "" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestETagIsTrustedAsMD5OnlyWhereThatIsDocumented(t *testing.T) {
	md5Like, multipart := "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef-2"
	amazon, other := &Store{aws: true}, &Store{}
	for _, x := range []struct {
		s    *Store
		etag string
		sse  types.ServerSideEncryption
		want bool
	}{
		{amazon, md5Like, "AES256", true},
		{amazon, md5Like, "", true},
		{amazon, md5Like, "aws:kms", false},
		{amazon, md5Like, "aws:kms:dsse", false},
		{amazon, multipart, "", false},
		{other, md5Like, "", true},
		{other, md5Like, "AES256", false},
		{other, "", "", false},
	} {
		if got := x.s.etagIsMD5(x.etag, x.sse); got != x.want {
			t.Errorf("aws %v, ETag %q, encryption %q: %v", x.s.aws, x.etag, x.sse, got)
		}
	}
}
