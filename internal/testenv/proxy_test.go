package testenv_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// counted is a server that counts the requests that reach it, behind a proxy.
func counted(t *testing.T) (*testenv.Proxy, *http.Client, *atomic.Int64) {
	t.Helper()
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		_, _ = io.Copy(w, r.Body)
	}))
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	return testenv.NewProxy(t, server.URL), client, &n
}

func post(ctx context.Context, c *http.Client, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func TestProxyIsTransparentAtFirst(t *testing.T) {
	p, c, _ := counted(t)
	body := bytes.Repeat([]byte("0123456789"), 100_000)
	got, err := post(t.Context(), c, p.URL(), body)
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("echo of %d bytes: got %d bytes, %v", len(body), len(got), err)
	}
}

func TestProxyRefusesUntilRestored(t *testing.T) {
	p, c, n := counted(t)
	p.Refuse()
	if _, err := post(t.Context(), c, p.URL(), nil); err == nil || n.Load() != 0 {
		t.Fatalf("refused request: err %v, %d arrived", err, n.Load())
	}
	p.Restore()
	if _, err := post(t.Context(), c, p.URL(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestProxyDropsRepliesOfRequestsThatArrive(t *testing.T) {
	p, c, n := counted(t)
	p.DropReplies()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := post(ctx, c, p.URL(), []byte("write"))
		failed <- err
	}()
	for p.Dropped() == 0 {
		select {
		case err := <-failed:
			t.Fatal("the request ended:", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || n.Load() != 1 {
		t.Fatalf("err %v, %d arrived", err, n.Load())
	}
	p.Restore()
	if got, err := post(t.Context(), c, p.URL(), []byte("again")); err != nil || string(got) != "again" {
		t.Fatalf("after Restore: %q, %v", got, err)
	}
}

func TestProxyCutEndsOpenConnectionsOnly(t *testing.T) {
	arrived := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			arrived <- struct{}{}
			<-r.Context().Done()
		}
	}))
	t.Cleanup(server.Close)
	p, c := testenv.NewProxy(t, server.URL), &http.Client{Transport: &http.Transport{}}
	t.Cleanup(c.CloseIdleConnections)
	failed := make(chan error, 1)
	go func() {
		_, err := post(t.Context(), c, p.URL()+"/hang", nil)
		failed <- err
	}()
	<-arrived
	p.Cut()
	if err := <-failed; err == nil {
		t.Fatal("a cut request succeeded")
	}
	if _, err := post(t.Context(), c, p.URL(), nil); err != nil {
		t.Fatal("after Cut:", err)
	}
}

func TestProxyDelaysEachRequest(t *testing.T) {
	p, c, _ := counted(t)
	p.Delay(30 * time.Millisecond)
	start := time.Now()
	for range 3 {
		if _, err := post(t.Context(), c, p.URL(), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < 90*time.Millisecond {
		t.Fatalf("3 requests with a delay of 30ms took %v", took)
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		orphan()
	}
	testenv.Main(m)
}

func TestProxyCutsRepliesInTheMiddle(t *testing.T) {
	p, c, _ := counted(t)
	p.CutAfter(100_000)
	if got, err := post(t.Context(), c, p.URL(), make([]byte, 1<<20)); err == nil {
		t.Errorf("%d bytes came, and no error", len(got))
	}
	if n := p.Passed(); n != 100_000 {
		t.Errorf("%d bytes were let through, want 100000", n)
	}
	p.Restore()
	if _, err := post(t.Context(), c, p.URL(), make([]byte, 1<<20)); err != nil {
		t.Errorf("after Restore: %v", err)
	}
}

func TestProxySlowsReplies(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 5_000))
	}))
	t.Cleanup(server.Close)
	p := testenv.NewProxy(t, server.URL)
	p.Slow(10_000)
	began := time.Now()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	got, err := post(t.Context(), client, p.URL(), nil)
	if err != nil || len(got) != 5_000 {
		t.Fatalf("%d bytes came: %v", len(got), err)
	}
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("5 kB at 10 kB/s took %v", took)
	}
}
