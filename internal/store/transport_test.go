package store

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// doer is an HTTP client made of a function.
type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(req *http.Request) (*http.Response, error) { return d(req) }

// slow is a body of n bytes, one for each pause. It ends when ctx does.
type slow struct {
	ctx   context.Context
	pause time.Duration
	n     int
}

func (s *slow) Close() error { return nil }

func (s *slow) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(s.pause):
		s.n--
		return copy(p, "x"), nil
	}
}

func get(t *testing.T) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://s3/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// hangs answers nothing until a request is given up.
func hangs(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

func wantStall(t *testing.T, err error) {
	t.Helper()
	var stall *stallError
	if !errors.As(err, &stall) || err.Error() != "no byte moved for 30s" {
		t.Errorf("want a stall, got %v", err)
	}
}

func TestAnswerThatNeverComesIsAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &transport{limit: stallLimit, next: doer(hangs)}
		start := time.Now()
		_, err := tr.Do(get(t))
		wantStall(t, err)
		if d := time.Since(start); d != stallLimit {
			t.Errorf("after %v", d)
		}
	})
}

func TestDownloadIsCutWhenItStandsStillAndNeverWhileItMoves(t *testing.T) {
	body := func(pause time.Duration) *transport {
		return &transport{limit: stallLimit, next: doer(func(req *http.Request) (*http.Response, error) {
			return &http.Response{Body: &slow{req.Context(), pause, 100}}, nil
		})}
	}
	synctest.Test(t, func(t *testing.T) {
		tr := body(29 * time.Second)
		resp, err := tr.Do(get(t))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		time.Sleep(time.Hour) // a caller who is busy with something else
		n, err := io.Copy(io.Discard, resp.Body)
		if n != 100 || err != nil || tr.received.Load() != 100 {
			t.Errorf("%d bytes, %v, counted %d", n, err, tr.received.Load())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		resp, err := body(31 * time.Second).Do(get(t))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		wantStall(t, err)
	})
}

func TestUploadIsCutWhenItStandsStillAndNeverWhileItMoves(t *testing.T) {
	send := func(t *testing.T, pause time.Duration) error {
		tr := &transport{limit: stallLimit, next: doer(func(req *http.Request) (*http.Response, error) {
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return nil, err
			}
			return &http.Response{Body: http.NoBody}, nil
		})}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := get(t).WithContext(ctx)
		req.Body = &slow{ctx, pause, 100}
		resp, err := tr.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	synctest.Test(t, func(t *testing.T) {
		if err := send(t, 29*time.Second); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		// The connection takes nothing: the server's window is closed.
		tr := &transport{limit: stallLimit, next: doer(func(req *http.Request) (*http.Response, error) {
			var one [1]byte
			if _, err := req.Body.Read(one[:]); err != nil {
				return nil, err
			}
			<-req.Context().Done()
			return nil, req.Context().Err()
		})}
		req := get(t)
		req.Body = io.NopCloser(strings.NewReader("text"))
		_, err := tr.Do(req)
		wantStall(t, err)
	})
}

func TestStallIsTriedAgainAndThenUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Config: configWith("k", "s"), Bucket: "b", Site: "promo"}
		o.Config.HTTPClient = doer(hangs)
		s := New(o)
		_, err := s.List(t.Context(), rel)
		wantErr(t, err, ErrUnavailable, "S3 unavailable: no byte moved for 30s")
		if n := s.Counts().Requests; n != attempts {
			t.Errorf("%d tries, want %d", n, attempts)
		}
	})
}

// A pointer is polled, and what waits for it is a rollout: a connection that died costs seconds, not half a minute.
func TestPointerReadThatHangsIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Config: configWith("k", "s"), Bucket: "b", Site: "promo"}
		tries := 0
		o.Config.HTTPClient = doer(func(req *http.Request) (*http.Response, error) {
			if tries++; tries == 1 {
				return hangs(req)
			}
			return &http.Response{StatusCode: 200, Header: http.Header{"Etag": {`"e"`}}, Body: io.NopCloser(strings.NewReader("r1\n1\n1"))}, nil
		})
		began := time.Now()
		read, err := New(o).Pointer(t.Context(), "")
		if err != nil || string(read.Text) != "r1\n1\n1" || tries != 2 {
			t.Errorf("read %+v, %v in %d tries", read, err, tries)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestAnswersBecomeSentinels(t *testing.T) {
	for _, x := range []struct {
		status int
		body   string
		want   error
		text   string
	}{
		{304, "", ErrNotModified, ""},
		{404, xml("NoSuchKey", "x"), ErrNotFound, ""},
		{404, xml("NoSuchBucket", "x"), ErrNoBucket, ""},
		{403, xml("AccessDenied", "Access Denied"), ErrDenied, "access denied (or it does not exist"},
		{403, xml("AccessDenied", "User: u is not authorized to perform: s3:GetObject."), ErrDenied, "AccessDenied: User: u is not authorized to perform: s3:GetObject ("},
		{403, xml("RequestTimeTooSkewed", "The difference is too large"), ErrDenied, "RequestTimeTooSkewed"},
		{400, xml("ExpiredToken", "The provided token has expired."), ErrNoCredentials, "The provided token has expired"},
		{400, xml("KMS.DisabledException", "key is disabled"), ErrDenied, "key is disabled"},
		{301, xml("PermanentRedirect", "x"), ErrRegion, "eu-west-1"},
		{503, xml("SlowDown", "Please reduce your request rate."), ErrUnavailable, "SlowDown"},
		{502, "<html>bad gateway</html>", ErrUnavailable, ""},
		{200, "", nil, ""},
	} {
		o := Options{Config: configWith("k", "s"), Bucket: "b", Site: "promo"}
		o.Config.HTTPClient = doer(func(*http.Request) (*http.Response, error) {
			return &http.Response{
				StatusCode: x.status, Header: http.Header{"X-Amz-Bucket-Region": {"eu-west-1"}},
				Body: io.NopCloser(strings.NewReader(x.body)),
			}, nil
		})
		synctest.Test(t, func(t *testing.T) {
			_, err := New(o).Pointer(t.Context(), "")
			if x.want == nil {
				if err != nil {
					t.Errorf("%d: %v", x.status, err)
				}
				return
			}
			wantErr(t, err, x.want, x.text)
			var sdk *smithyhttp.ResponseError
			if errors.As(err, &sdk) {
				t.Errorf("%d: the SDK's error leaves the package: %v", x.status, err)
			}
		})
	}
}

func xml(code, message string) string {
	return "<Error><Code>" + code + "</Code><Message>" + message + "</Message></Error>"
}

func TestKeysAndConditionsOnTheWire(t *testing.T) {
	var got *http.Request
	o := Options{Config: configWith("k", "s"), Bucket: "my.bucket", Prefix: "apps/", Site: "promo", KMSKey: "alias/deploy"}
	o.Config.HTTPClient = doer(func(req *http.Request) (*http.Response, error) {
		got = req
		if _, err := io.Copy(io.Discard, req.Body); err != nil { // the checksum follows the body
			return nil, err
		}
		return &http.Response{StatusCode: 200, Header: http.Header{"Etag": {`"new"`}}, Body: http.NoBody}, nil
	})
	s := New(o)
	etag, err := s.WritePointer(t.Context(), []byte("x"), "old")
	if err != nil || etag != "new" {
		t.Fatalf("%q, %v", etag, err)
	}
	if got.URL.Path != "/my.bucket/apps/promo/latest-deploy" || got.URL.Scheme != "https" {
		t.Errorf("pointer at %s", got.URL)
	}
	for name, want := range map[string]string{
		"If-Match": `"old"`, "If-None-Match": "",
		"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "alias/deploy",
	} {
		if have := got.Header.Get(name); have != want {
			t.Errorf("pointer: header %s is %q, want %q", name, have, want)
		}
	}
	upload(t, s, "a b+c%.txt", "text")
	if want := "/my.bucket/apps/promo/2026-11-20_20-15-02/a%20b%2Bc%25.txt"; got.URL.EscapedPath() != want {
		t.Errorf("object at %s, want %s", got.URL.EscapedPath(), want)
	}
	if got.Header.Get("If-None-Match") != "*" {
		t.Errorf("upload is not conditional: %v", got.Header)
	}
}
