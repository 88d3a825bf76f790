package store

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
)

// bar is a progress callback that remembers.
type bar struct {
	mu          sync.Mutex
	total, peak int64
	calls       int
	back        int64 // what was taken back
}

func (b *bar) add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	b.total += n
	b.peak = max(b.peak, b.total)
	b.back -= min(n, 0)
}

func TestCutUploadSendsOnlyThatPackAgain(t *testing.T) {
	o, server := options(t)
	const size = 3 << 20
	var cut atomic.Bool
	var puts atomic.Int32
	o.Endpoint = through(t, server.Endpoint, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut && puts.Add(1) == 2 {
			cut.Store(true)
			if _, err := io.CopyN(io.Discard, r.Body, size/2); err != nil {
				t.Error(err)
			}
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	s := fast(o)
	var b bar
	ctx := WithProgress(t.Context(), b.add)
	for i := range 3 {
		text := big(size-1) + fmt.Sprint(i)
		if err := s.PutPack(ctx, sha256.Sum256([]byte(text)), strings.NewReader(text), size); err != nil {
			t.Fatal(err)
		}
	}
	if !cut.Load() || puts.Load() != 4 {
		t.Errorf("%d requests for 3 packs, one of which was cut", puts.Load())
	}
	if b.total != 3*size || b.peak != 3*size {
		t.Errorf("progress ended at %d, was at most %d, want %d", b.total, b.peak, 3*size)
	}
	if b.back < size/2 || b.back > size {
		t.Errorf("%d bytes were taken back, want those of the cut request", b.back)
	}
	if b.calls < 20 {
		t.Errorf("only %d calls for %d bytes: nothing in the middle of an object", b.calls, 3*size)
	}
}

func TestFailedUploadLeavesNoProgress(t *testing.T) {
	o, _ := options(t)
	o.Endpoint = through(t, o.Endpoint, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.CopyN(io.Discard, r.Body, 1000)
		panic(http.ErrAbortHandler)
	})
	var b bar
	text := big(100_000)
	err := fast(o).PutPack(WithProgress(t.Context(), b.add), sha256.Sum256([]byte(text)), strings.NewReader(text), 100_000)
	wantErr(t, err, ErrUnavailable, "put object: S3 unavailable")
	if b.total != 0 || b.peak == 0 {
		t.Errorf("progress ended at %d, was at most %d", b.total, b.peak)
	}
}

// shrinking is longer when it is measured than when it is read.
type shrinking struct{ *strings.Reader }

func (s shrinking) Seek(offset int64, whence int) (int64, error) {
	n, err := s.Reader.Seek(offset, whence)
	if whence == io.SeekEnd {
		n += 10
	}
	return n, err
}

func TestFileThatShrinksWhileItIsReadIsNotRetried(t *testing.T) {
	o, _ := options(t)
	s := New(o)
	text := big(100_000)
	err := s.PutPack(t.Context(), release.Sum{}, shrinking{strings.NewReader(text)}, int64(len(text)+10))
	wantErr(t, err, ErrChanged, "read contents: object has changed: it ends at byte 100000 of 100010")
	if n := s.Counts().Requests; n > 1 {
		t.Errorf("%d requests", n)
	}
}

// refuser lets each PUT begin and refuses it before it has read the body. The end of the answer comes when the client
// knows its beginning and has nothing more to send: a client that is not careful has closed the connection then.
func refuser(t *testing.T, begun <-chan struct{}, answered chan<- error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	const text = `<Error><Code>AccessDenied</Code><Message>the reason of the refusal</Message></Error>`
	refuse := func(c net.Conn) error {
		defer c.Close()
		in := bufio.NewReader(c)
		if _, err := http.ReadRequest(in); err != nil {
			return err
		}
		fmt.Fprintf(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s", len(text), text[:10])
		<-begun
		for err == nil {
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, err = io.CopyN(io.Discard, in, 32<<10)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the client went away while it was answered: %w", err)
		}
		_, err = io.WriteString(c, text[10:])
		// A client that only stalled sends more: unread, it would take the answer's end with it.
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, in)
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { answered <- refuse(c) }()
		}
	}()
	return "http://" + l.Addr().String()
}

func TestReasonOfAnEarlyRefusalIsRead(t *testing.T) {
	begun, answered := make(chan struct{}), make(chan error, attempts)
	o := Options{Config: configWith("k", "s"), Endpoint: refuser(t, begun, answered), Bucket: "b", Site: "promo"}
	var once sync.Once
	client := &http.Client{}
	o.Config.HTTPClient = doer(func(r *http.Request) (*http.Response, error) {
		resp, err := client.Do(r)
		once.Do(func() { close(begun) })
		return resp, err
	})
	s := fast(o)
	text := strings.Repeat("x", 32<<20) // more than the kernel takes
	err := s.PutPack(t.Context(), sha256.Sum256([]byte(text)), strings.NewReader(text), int64(len(text)))
	wantErr(t, err, ErrDenied, "the reason of the refusal")
	if n := s.Counts().Requests; n != 1 {
		t.Errorf("%d requests, want one: a refusal is not repeated", n)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
