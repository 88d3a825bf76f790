package store

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/testenv"
)

func TestMain(m *testing.M) {
	deleteTime = time.Minute
	testenv.Main(m)
}

const rel = release.ID("2026-11-20_20-15-02")

// options are those of a site in a bucket of its own, on the real server.
func options(t *testing.T) (Options, testenv.S3Server) {
	t.Helper()
	server := testenv.S3(t)
	return Options{
		Config:   configWith(server.AccessKey, server.SecretKey),
		Endpoint: server.Endpoint, Bucket: server.NewBucket(t), Prefix: "apps/", Site: "promo",
	}, server
}

// configWith has what the SDK's own loader sets, too.
func configWith(key, secret string) aws.Config {
	return aws.Config{
		Region:                     "us-east-1",
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}, nil
		}),
	}
}

// fast makes a store that waits as little as possible between tries.
func fast(o Options) *Store {
	s := New(o)
	s.pause = time.Millisecond
	return s
}

// through is a proxy before the server. The hook answers each request by itself, or lets next do it.
func through(t *testing.T, endpoint string, hook func(w http.ResponseWriter, r *http.Request, next http.Handler)) string {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	next := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hook(w, r, next) }))
	t.Cleanup(proxy.Close)
	return proxy.URL
}

// upload puts one file of the release there.
func upload(t *testing.T, s *Store, path, text string) {
	t.Helper()
	if err := s.Upload(t.Context(), rel, path, strings.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
}

// only returns the release's single object.
func only(t *testing.T, s *Store) release.Object {
	t.Helper()
	listing, err := s.List(t.Context(), rel)
	if err != nil || len(listing) != 1 {
		t.Fatalf("want one object, got %v, %v", listing, err)
	}
	return listing[0]
}

// contents reads an object to its end.
func contents(s *Store, obj release.Object) (string, error) {
	r, err := s.Open(context.Background(), rel, obj)
	if err != nil {
		return "", err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	return string(text), err
}

func wantErr(t *testing.T, err, which error, text string) {
	t.Helper()
	if !errors.Is(err, which) {
		t.Fatalf("got error %v, want %v", err, which)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error %q does not say %q", err, text)
	}
}

func TestMissingBucketIsNamed(t *testing.T) {
	o, _ := options(t)
	o.Bucket = "no-such-bucket"
	s := New(o)
	_, pointerErr := s.Pointer(t.Context(), "")
	_, listErr := s.List(t.Context(), rel)
	_, writeErr := s.WritePointer(t.Context(), []byte("x"), "")
	for _, err := range []error{s.Exists(t.Context()), pointerErr, listErr, writeErr} {
		wantErr(t, err, ErrNoBucket, "bucket does not exist")
	}
}

func TestWrongCredentialsAreDenied(t *testing.T) {
	o, server := options(t)
	o.Config = configWith(server.AccessKey, "wrong")
	s := New(o)
	_, err := s.Pointer(t.Context(), "")
	wantErr(t, err, ErrDenied, `read pointer "apps/promo/latest-deploy": get object: access denied`)
	wantErr(t, s.Exists(t.Context()), ErrDenied, "SignatureDoesNotMatch")
	err = s.Upload(t.Context(), rel, "a", strings.NewReader("a"), 1)
	wantErr(t, err, ErrDenied, `upload "a": put object: access denied`)
}

func TestMissingCredentialsKeepTheirCause(t *testing.T) {
	cause := errors.New("session has expired")
	s := New(Options{Endpoint: "http://127.0.0.1:1", Bucket: "b", Site: "promo", Config: aws.Config{
		Region: "us-east-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{}, cause
		}),
	}})
	_, err := s.Pointer(t.Context(), "")
	wantErr(t, err, ErrNoCredentials, `read pointer "promo/latest-deploy": get object: session has expired`)
	wantErr(t, err, cause, "")

	none := New(Options{Endpoint: "http://127.0.0.1:1", Bucket: "b", Site: "promo", Config: aws.Config{Region: "us-east-1"}})
	wantErr(t, none.Exists(t.Context()), ErrNoCredentials, "no usable AWS credentials")
}

func TestUnreachableServerIsUnavailableAndCanceledIsCanceled(t *testing.T) {
	o := Options{Config: configWith("k", "s"), Endpoint: "http://127.0.0.1:1", Bucket: "b", Site: "promo"}
	o.Config.RetryMaxAttempts = 1 // of other services; the store has its own number
	ctx, cancel := context.WithCancel(t.Context())
	s := fast(o)
	_, err := s.Pointer(ctx, "")
	wantErr(t, err, ErrUnavailable, "connection refused")
	if got := s.Counts().Requests; got != attempts {
		t.Errorf("%d requests, want %d tries", got, attempts)
	}
	cancel()
	_, err = s.Pointer(ctx, "")
	wantErr(t, err, context.Canceled, "")
	if errors.Is(err, ErrUnavailable) {
		t.Errorf("a canceled request says that S3 is unavailable: %v", err)
	}
}

func TestCountsBytesAndRequests(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	upload(t, s, "a.txt", strings.Repeat("a", 1000))
	if c := s.Counts(); c.Requests != 1 || c.Sent < 1000 {
		t.Errorf("after an upload of 1000 bytes: %+v", c)
	}
	before := s.Counts()
	if _, err := contents(s, only(t, s)); err != nil {
		t.Fatal(err)
	}
	if c := s.Counts(); c.Requests != before.Requests+2 || c.Received < before.Received+1000 {
		t.Errorf("after a listing and a download of 1000 bytes: %+v, before %+v", c, before)
	}
}
