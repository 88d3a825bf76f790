package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"s3pulldeploy/internal/testenv/parts"
)

// request sends one signed request about the site's bucket, as anybody with a key can. query is of a listing.
func (s *site) request(method, key, query, body string) (int, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	address := s.world.s3.Endpoint + "/" + s.bucket + "/" + key
	if query != "" {
		address += "?" + query
	}
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	check(s.t, err)
	sum := sha256.Sum256([]byte(body))
	digest := hex.EncodeToString(sum[:])
	req.Header.Set("X-Amz-Content-Sha256", digest)
	who := aws.Credentials{AccessKeyID: parts.AccessKey, SecretAccessKey: parts.SecretKey}
	check(s.t, v4.NewSigner().SignHTTP(ctx, who, req, digest, "s3", parts.Region, time.Now()))
	resp, err := http.DefaultClient.Do(req)
	check(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(s.t, err)
	return resp.StatusCode, string(text)
}

// put writes an object below the site, whatever is there.
func (s *site) put(key, text string) {
	s.t.Helper()
	if code, answer := s.request(http.MethodPut, s.name+"/"+key, "", text); code != http.StatusOK {
		s.t.Fatalf("put %s: %d %s", key, code, answer)
	}
}

// object reads an object below the site.
func (s *site) object(key string) string {
	s.t.Helper()
	code, text := s.request(http.MethodGet, s.name+"/"+key, "", "")
	if code != http.StatusOK {
		s.t.Fatalf("get %s: %d %s", key, code, text)
	}
	return text
}

// list lists the keys of a release, without the release.
func (s *site) list(release string) []string {
	s.t.Helper()
	prefix := s.name + "/" + release + "/"
	code, text := s.request(http.MethodGet, "", url.Values{"list-type": {"2"}, "prefix": {prefix}}.Encode(), "")
	var answer struct {
		Contents []struct{ Key string }
	}
	if err := xml.Unmarshal([]byte(text), &answer); code != http.StatusOK || err != nil {
		s.t.Fatalf("list %s: %d %v %s", prefix, code, err, text)
	}
	var names []string
	for _, c := range answer.Contents {
		names = append(names, strings.TrimPrefix(c.Key, prefix))
	}
	return names
}

// middle stands between somebody and S3: it counts downloads, can change an answer and hold a request back.
type middle struct {
	*httptest.Server
	site      *site
	proxy     http.Handler // to the server, whatever the faults
	downloads atomic.Int64 // answers with contents of a release
	lie       atomic.Pointer[func(key string, body []byte) []byte]
	writing   atomic.Pointer[func(key string)] // called before a PUT goes on, with the key below the site
	// fault may answer a request itself; then it returns true. key is below the site, or the path of what is none of ours.
	fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request, key string) bool]
}

// between puts a middle in front of S3, and of the agents that are configured from now on.
func (s *site) between() *middle {
	s.t.Helper()
	m := s.front(s.world.s3.Endpoint)
	s.s3 = m.URL
	return m
}

// front puts a middle in front of a server.
func (s *site) front(address string) *middle {
	s.t.Helper()
	target, err := url.Parse(address)
	check(s.t, err)
	m := &middle{site: s}
	m.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = r.In.Host // the signature is over it
		},
		ModifyResponse: m.answer,
	}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if writing := m.writing.Load(); writing != nil && r.Method == http.MethodPut {
			if key, ours := m.key(r); ours {
				(*writing)(key)
			}
		}
		if fault := m.fault.Load(); fault != nil {
			if key, _ := m.key(r); (*fault)(w, r, key) {
				return
			}
		}
		m.proxy.ServeHTTP(w, r)
	}))
	s.t.Cleanup(m.Close)
	return m
}

// key is what a request is about, below the site.
func (m *middle) key(r *http.Request) (key string, ours bool) {
	return strings.CutPrefix(r.URL.Path, "/"+m.site.bucket+"/"+m.site.name+"/")
}

// breaks answers requests by f, where that returns true.
func (m *middle) breaks(f func(w http.ResponseWriter, r *http.Request, key string) bool) {
	m.fault.Store(&f)
}

// heals ends what breaks began.
func (m *middle) heals() { m.fault.Store(nil) }

func (m *middle) answer(resp *http.Response) error {
	key, ours := m.key(resp.Request)
	if !ours || resp.Request.Method != http.MethodGet || !strings.Contains(key, "/") || resp.StatusCode != http.StatusOK {
		return nil
	}
	m.downloads.Add(1)
	lie := m.lie.Load()
	if lie == nil {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	body = (*lie)(key, body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// files is a small tree whose index says which version it is.
func files(version string) map[string]string {
	return map[string]string{"index.php": version, "lib/a.php": "a", "lib/deep/b.txt": "b"}
}

// serving wants an agent to serve a version in full.
func serving(t *testing.T, a *agent, version string) {
	t.Helper()
	for name, text := range files(version) {
		if got := a.file(name); got != text {
			t.Errorf("%s serves %s as %q, want %q", a.id, name, got, text)
		}
	}
}
