package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// web is a server behind a proxy, and a client of its own.
func web(t *testing.T, h http.HandlerFunc) (*proxy, *http.Client) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	p, err := startProxy(strings.TrimPrefix(server.URL, "http://"))
	must(t, err)
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		must(t, p.Close())
	})
	return p, client
}

func get(t *testing.T, c *http.Client, p *proxy) string {
	t.Helper()
	resp, err := c.Get(p.URL())
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(body)
}

func TestProxyCountsRequestsAndBytes(t *testing.T) {
	answer := strings.Repeat("x", 3<<20)
	p, c := web(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, answer)
	})
	for range 3 { // on one connection
		if get(t, c, p) != answer {
			t.Fatal("another answer")
		}
	}
	resp, err := c.Post(p.URL(), "", bytes.NewReader(make([]byte, 2<<20))) // in many pieces
	must(t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	got := p.traffic()
	if got.Requests != 4 || got.Up < 2<<20 || got.Up > 2<<20+4096 || got.Down < 12<<20 || got.Down > 13<<20 {
		t.Errorf("%+v", got)
	}
}

func TestRequestThatAsksFirstCountsOnce(t *testing.T) {
	p, c := web(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	req, err := http.NewRequest(http.MethodPut, p.URL(), strings.NewReader("body"))
	must(t, err)
	req.Header.Set("Expect", "100-continue")
	resp, err := c.Do(req)
	must(t, err)
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if got := p.traffic().Requests; string(body) != "body" || got != 1 {
		t.Errorf("%q, %d requests", body, got)
	}
}

func TestEachRequestIsDelayed(t *testing.T) {
	p, c := web(t, func(http.ResponseWriter, *http.Request) {})
	get(t, c, p)
	p.latency(30 * time.Millisecond)
	began := time.Now()
	for range 4 {
		get(t, c, p)
	}
	if took := time.Since(began); took < 120*time.Millisecond {
		t.Errorf("4 requests of 30 ms took %v", took)
	}
}

func TestRequestsAreHeldToTheRate(t *testing.T) {
	p, c := web(t, func(http.ResponseWriter, *http.Request) {})
	p.limit(100)
	began := time.Now()
	var all sync.WaitGroup
	for range 11 {
		all.Go(func() {
			if resp, err := c.Get(p.URL()); err == nil {
				resp.Body.Close()
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took < 100*time.Millisecond || p.held.Load() == 0 {
		t.Errorf("11 requests at 100 a second took %v, held %d ns", took, p.held.Load())
	}
}

func TestBytesAreHeldToTheBandwidth(t *testing.T) {
	p, c := web(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })
	p.bandwidth(20 << 20)
	began := time.Now()
	get(t, c, p)
	get(t, c, p)
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("2 MiB at 20 MiB a second took %v", took)
	}
}

func TestSomebodyWaitsForBytes(t *testing.T) {
	p, c := web(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1000)) })
	done := p.downAt(1500)
	get(t, c, p)
	select {
	case <-done:
		t.Error("woken by half of them")
	default:
	}
	get(t, c, p)
	<-done
}
