package php

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// releaseHeader names a release: the one that answered, or the one that is to answer.
const releaseHeader = "X-Deploy-Release"

// answerSize is the most that a probe or a page is read for.
const answerSize = 64 << 10

// route is a way to the web server for one request or a few: connections are not kept.
type route struct {
	name   string // as a person wrote it
	url    string // for the request
	host   string // the Host header, empty: the URL's
	client *http.Client
}

// answer is what came back, the body up to answerSize.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	bodyErr  error // the body ended early
	tooLarge bool
}

// newRoute reads http://…, https://… and unix:/path/to.sock:/uri.
func newRoute(address, host string) (*route, error) {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	r := &route{name: address, url: address, host: host, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		socket, uri, ok := strings.Cut(rest, ":")
		if !ok || !strings.HasPrefix(socket, "/") || !strings.HasPrefix(uri, "/") {
			return nil, malformed(address)
		}
		r.url = "http://localhost" + uri
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	u, err := url.Parse(r.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, malformed(address)
	}
	if host != "" {
		transport.TLSClientConfig = &tls.Config{ServerName: hostname(host)}
	}
	return r, nil
}

func malformed(address string) *RouteError {
	return &RouteError{
		URL: address, Cause: "not a URL",
		Cure: "write http://127.0.0.1:8901/_deploy/opcache or unix:/path/to.sock:/_deploy/opcache",
	}
}

// hostname is a Host header without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// outside makes the question one from an address of this machine, to any certificate: its answer is not believed, only its
// coming matters.
func (r *route) outside(from string) {
	t := r.client.Transport.(*http.Transport)
	t.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = new(tls.Config)
	}
	t.TLSClientConfig.InsecureSkipVerify = true
}

func (r *route) close() { r.client.CloseIdleConnections() }

// post sends a form to the probe.
func (r *route) post(ctx context.Context, form url.Values) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-Deploy-Opcache", "1")
	return r.do(req)
}

// get asks for a page as a visitor does, or, with a release, as of a server that serves releases by their names.
func (r *route) get(ctx context.Context, release string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return answer{}, err
	}
	if release != "" {
		req.Header.Set(releaseHeader, release)
	}
	return r.do(req)
}

// do fails when there is no answer at all; one that breaks off in its body is an answer.
func (r *route) do(req *http.Request) (answer, error) {
	req.Header.Set("User-Agent", "s3-pull-deploy")
	if r.host != "" {
		req.Host = r.host
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.bodyErr = io.ReadAll(io.LimitReader(resp.Body, answerSize+1))
	if len(a.body) > answerSize {
		a.body, a.tooLarge = a.body[:answerSize], true
	}
	return a, nil
}
