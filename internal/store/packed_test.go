package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"s3pulldeploy/internal/release"
)

const parent = release.ID("2026-11-19_08-00-00")

// content identifies a text, as a signed pointer would.
func content(text string) release.Content {
	sum := sha256.Sum256([]byte(text))
	return release.Content{SHA256: hex.EncodeToString(sum[:]), Length: int64(len(text))}
}

func putPack(t *testing.T, s *Store, text string) release.Source {
	t.Helper()
	sum := release.Sum(sha256.Sum256([]byte(text)))
	if err := s.PutPack(t.Context(), sum, strings.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	return release.Source{Pack: sum}
}

// file is where the server keeps an object of the site.
func file(dir string, o Options, key string) string {
	return filepath.Join(dir, o.Bucket, "apps/promo", filepath.FromSlash(key))
}

// setAge changes what the server takes for the time of the last write.
func setAge(t *testing.T, path string, age time.Duration) {
	t.Helper()
	then := time.Now().Add(-age)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
}

func TestPackedObjectsOnTheWire(t *testing.T) {
	var got *http.Request
	o := Options{Config: configWith("k", "s"), Bucket: "my.bucket", Prefix: "apps/", Site: "promo", KMSKey: "alias/deploy"}
	var body []byte
	o.Config.HTTPClient = doer(func(req *http.Request) (*http.Response, error) {
		got = req
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: 200, Header: http.Header{"Etag": {`"new"`}}, Body: http.NoBody}, nil
	})
	s := New(o)
	text := []byte("text")
	sum := release.Sum(sha256.Sum256(text))
	for _, x := range []struct {
		key string
		put func() error
	}{
		{"m/" + string(rel), func() error { return s.PutManifest(t.Context(), rel, text) }},
		{"d/" + string(rel) + "/" + string(parent), func() error { return s.PutDelta(t.Context(), rel, parent, text) }},
		{"p/" + sum.String(), func() error { return s.PutPack(t.Context(), sum, bytes.NewReader(text), 4) }},
	} {
		if err := x.put(); err != nil {
			t.Fatal(err)
		}
		if want := "/my.bucket/apps/promo/" + x.key; got.URL.Path != want || got.Method != http.MethodPut {
			t.Errorf("%s %s, want PUT %s", got.Method, got.URL.Path, want)
		}
		for name, want := range map[string]string{
			"If-None-Match": "*", "If-Match": "",
			"X-Amz-Checksum-Sha256":        base64.StdEncoding.EncodeToString(sum[:]),
			"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "alias/deploy",
		} {
			if have := got.Header.Get(name); have != want {
				t.Errorf("%s: header %s is %q, want %q", x.key, name, have, want)
			}
		}
		if string(body) != "text" { // plain: no chunks with a trailer, as the sum is known before
			t.Errorf("%s: body %q", x.key, body)
		}
	}
}

func TestInterruptedPushIsRunAgainAndOtherContentsAreRefused(t *testing.T) {
	for _, checksums := range []bool{true, false} {
		o, _ := options(t)
		if !checksums { // then the ETag is all there is to compare
			o.Config.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		}
		s := New(o)
		for range 2 {
			putPack(t, s, "pack")
			if err := errors.Join(s.PutManifest(t.Context(), rel, []byte("manifest")),
				s.PutDelta(t.Context(), rel, parent, []byte("delta"))); err != nil {
				t.Fatal(err)
			}
		}
		wantErr(t, s.PutManifest(t.Context(), rel, []byte("MANIFEST")), ErrExists,
			`write manifest "2026-11-20_20-15-02": object exists with other contents`)
		wantErr(t, s.PutDelta(t.Context(), rel, parent, []byte("longer delta")), ErrExists,
			`write delta "2026-11-20_20-15-02" of "2026-11-19_08-00-00": object exists with 5 bytes instead of 12`)
		if text, err := s.GetManifest(t.Context(), rel, content("manifest")); err != nil || string(text) != "manifest" {
			t.Errorf("%q, %v: it was overwritten", text, err)
		}
	}
}

func TestPackThatIsNotOfItsNameIsNotStored(t *testing.T) {
	o, server := options(t)
	s := fast(o)
	sum := release.Sum(sha256.Sum256([]byte("right")))
	if err := s.PutPack(t.Context(), sum, strings.NewReader("wrong"), 5); err == nil {
		t.Error("no error")
	}
	_, err := s.HasPack(t.Context(), sum)
	wantErr(t, err, ErrNotFound, `find pack "`+sum.String())
	err = s.PutPack(t.Context(), sum, strings.NewReader("right"), 6)
	wantErr(t, err, ErrChanged, "5 bytes instead of 6")
	o.Config = configWith(server.AccessKey, "wrong")
	wantErr(t, New(o).PutPack(t.Context(), sum, strings.NewReader("right"), 5), ErrDenied, "put object: access denied")
}

func TestManifestAndDeltaMustBeTheSignedOnes(t *testing.T) {
	o, server := options(t)
	s := fast(o)
	_, err := s.GetManifest(t.Context(), rel, content("x"))
	wantErr(t, err, ErrNotFound, `read manifest "2026-11-20_20-15-02": get object: not found`)
	text := big(300_000)
	if err := errors.Join(s.PutManifest(t.Context(), rel, []byte(text)), s.PutDelta(t.Context(), rel, parent, []byte(text))); err != nil {
		t.Fatal(err)
	}
	got, err := s.GetDelta(t.Context(), rel, parent, content(text))
	if err != nil || string(got) != text {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	_, err = s.GetManifest(t.Context(), rel, content(text[1:]))
	wantErr(t, err, ErrDamaged, "300000 bytes instead of 299999")
	_, err = s.GetManifest(t.Context(), rel, content("x"+text[1:]))
	wantErr(t, err, ErrDamaged, "contents are damaged: SHA-256 ")
	_, err = s.GetManifest(t.Context(), rel, release.Content{Length: release.MaxManifest + 1})
	wantErr(t, err, ErrTooLarge, "limit 67108864")
	denied := o
	denied.Config = configWith(server.AccessKey, "wrong")
	_, err = New(denied).GetManifest(t.Context(), rel, content(text))
	wantErr(t, err, ErrDenied, `read manifest "2026-11-20_20-15-02": get object: access denied`)

	path := file(server.Dir, o, "d/"+string(rel)+"/"+string(parent))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[150_000] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil { // in place: the server still vouches for it
		t.Fatal(err)
	}
	before := s.Counts().Requests
	_, err = s.GetDelta(t.Context(), rel, parent, content(text))
	wantErr(t, err, ErrDamaged, `read delta "2026-11-20_20-15-02" of "2026-11-19_08-00-00"`)
	if n := s.Counts().Requests - before; n != 1+refetches {
		t.Errorf("%d requests, want %d", n, 1+refetches)
	}
}

func TestDamageOnTheWayIsRepairedByASecondFetch(t *testing.T) {
	o, server := options(t)
	o.Config.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	text := big(100_000)
	if err := New(o).PutManifest(t.Context(), rel, []byte(text)); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name  string
		spoil func([]byte) []byte
	}{
		{"a flipped bit", func(b []byte) []byte { b[1000] ^= 1; return b }},
		{"a byte more", func(b []byte) []byte { return append(b, 'x') }},
	} {
		var gets atomic.Int32
		o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if gets.Add(1) > 1 {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			http.NewResponseController(w).Flush() // without a length that would give the change away
			_, _ = w.Write(x.spoil(rec.Body.Bytes()))
		})
		got, err := fast(o).GetManifest(t.Context(), rel, content(text))
		if err != nil || string(got) != text || gets.Load() != 2 {
			t.Errorf("%s: %d bytes in %d requests, %v", x.name, len(got), gets.Load(), err)
		}
	}
}

func TestOldPackIsRenewedSoThatNobodyDeletesItMeanwhile(t *testing.T) {
	o, server := options(t)
	pack := putPack(t, New(o), "pack")
	path := file(server.Dir, o, pack.Key())
	setAge(t, path, Grace/4-time.Minute)
	s := New(o)
	var progress atomic.Int64
	ctx := WithProgress(t.Context(), func(n int64) { progress.Add(n) })
	put := func() {
		t.Helper()
		if err := s.PutPack(ctx, pack.Pack, strings.NewReader("pack"), 4); err != nil {
			t.Fatal(err)
		}
	}
	put()
	young, err := s.HasPack(ctx, pack.Pack)
	if err != nil || time.Since(young.Modified) < Grace/4-2*time.Minute {
		t.Errorf("a young one was written again: %v, %v", young, err)
	}
	setAge(t, path, Grace/4+time.Minute)
	put()
	renewed, err := s.HasPack(ctx, pack.Pack)
	if err != nil || time.Since(renewed.Modified) > time.Hour || renewed.Size != 4 {
		t.Errorf("an old one was not: %v, %v", renewed, err)
	}
	if progress.Load() != 8 {
		t.Errorf("progress says %d bytes, want 8 for two packs of 4", progress.Load())
	}
}

func TestOldPackThatIsDeletedWhileItIsRenewedIsWrittenAnew(t *testing.T) {
	o, server := options(t)
	pack := putPack(t, New(o), "pack")
	path := file(server.Dir, o, pack.Key())
	setAge(t, path, Grace/4+time.Minute)
	var renewals atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut && r.Header.Get("If-Match") != "" {
			renewals.Add(1)
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		next.ServeHTTP(w, r)
	})
	var b bar
	err := fast(o).PutPack(WithProgress(t.Context(), b.add), pack.Pack, strings.NewReader("pack"), 4)
	if err != nil || renewals.Load() != 1 || b.total != 4 {
		t.Fatalf("%v after %d renewals, progress %d", err, renewals.Load(), b.total)
	}
	if got, err := readRange(New(o), pack, 0, 4); err != nil || got != "pack" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAPackOfOtherBytesThanItsNameSaysIsOverwritten(t *testing.T) {
	for _, found := range []string{"PACK", "pa"} {
		o, server := options(t)
		s := New(o)
		pack := putPack(t, s, "pack")
		other := s.outgoing(pack.Key(), strings.NewReader(found), int64(len(found)), sha256.Sum256([]byte(found)))
		if err := s.put(t.Context(), other, &s3.PutObjectInput{}); err != nil {
			t.Fatal(err)
		}
		putPack(t, s, "pack")
		if text, err := os.ReadFile(file(server.Dir, o, pack.Key())); err != nil || string(text) != "pack" {
			t.Errorf("%q stays as %q, %v", found, text, err)
		}
		// What S3 does not know of: the bytes on its disk.
		if err := os.WriteFile(file(server.Dir, o, pack.Key()), []byte("pacc"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.ReplacePack(t.Context(), pack.Pack, strings.NewReader("pack"), 4); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(file(server.Dir, o, pack.Key())); err != nil || string(text) != "pack" {
			t.Errorf("%q, %v", text, err)
		}
	}
}
