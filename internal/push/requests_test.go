package push

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// whileAsking runs a request of push, and something else after it has read the pointer and before it reads the head.
func (r *packedRig) whileAsking(verb string, meanwhile func()) (said string, err error) {
	r.Helper()
	c, _ := r.ledger()
	target, err := url.Parse(c.Endpoints.DynamoDB)
	if err != nil {
		r.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target); p.Out.Host = p.In.Host }}
	pointer, head, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.Header.Get("X-Amz-Target"), ".GetItem") {
			<-head
		}
		proxy.ServeHTTP(w, req)
	}))
	defer front.Close()
	settings, err := os.ReadFile(r.config)
	fronted := r.config + ".front"
	if err == nil {
		err = os.WriteFile(fronted, bytes.Replace(settings, []byte(c.Endpoints.DynamoDB), []byte(front.URL), 1), 0o644)
	}
	if err != nil {
		r.Fatal(err)
	}
	read := sync.OnceFunc(func() { close(pointer) })
	r.wire.then(func(request string) {
		if strings.HasPrefix(request, http.MethodGet) && strings.Contains(request, "/latest-deploy") {
			read()
		}
	})
	defer r.wire.then(nil)
	asked := *r
	asked.config = fronted
	go func() {
		defer close(ended)
		said, err = asked.session(r.Context(), func(s *session) { s.table = time.Minute }, verb)
	}()
	select {
	case <-pointer:
		meanwhile()
	case <-ended:
	}
	close(head)
	<-ended
	return said, err
}

// then sets what comes after each request that was answered.
func (w *wire) then(after func(request string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.after = after
}

// commit moves the head through one epoch to the pointer's release.
func (r *packedRig) commit(l *fleet.Ledger) {
	r.Helper()
	read, err := r.store.Pointer(r.Context(), "")
	if err != nil {
		r.Fatal(err)
	}
	note, err := fleet.NewNote(read.Text)
	if err == nil {
		err = l.PutNote(r.Context(), note)
	}
	var h fleet.Head
	if err == nil {
		h, err = l.Open(r.Context(), h, note, "i-1", false)
	}
	if err == nil {
		h, err = l.Decide(r.Context(), h, fleet.Outcome{Commit: true, Members: 1})
	}
	if err == nil {
		_, err = l.Done(r.Context(), h, true, "")
	}
	if err != nil {
		r.Fatal(err)
	}
}

func TestAbortDoesNotLowerTheHoldOfAPushThatCameAfterItReadThePointer(t *testing.T) {
	r := newPackedRig(t, map[string]string{"index.php": "1"})
	_, l := r.ledger()
	r.deploy()
	r.commit(l)
	r.write("index.php", "2")
	r.deploy()
	var newer Result
	said, err := r.whileAsking("-abort", func() {
		r.write("index.php", "3")
		newer, _ = r.deploy()
		if code, _, said := r.push(t.Context(), "-abort"); code != exitDone {
			t.Error(said)
		}
	})
	h, _, headErr := l.Head(t.Context(), true)
	if headErr != nil || newer.Sequence == 0 || h.Hold != newer.Sequence {
		t.Errorf("%d is to be held: the head is %+v, %v", newer.Sequence, h, headErr)
	}
	if err != nil || !strings.Contains(said, string(newer.Release)+" is held") {
		t.Errorf("%v: %s", err, said)
	}
}

// A hold whose push is gone from the bucket must not keep what is pushed since from being aborted.
func TestAbortLowersAHoldThatIsAboveThePointer(t *testing.T) {
	r := newPackedRig(t, map[string]string{"index.php": "1"})
	_, l := r.ledger()
	r.deploy()
	r.commit(l)
	r.write("index.php", "2")
	pushed, _ := r.deploy()
	h, _, err := l.Head(t.Context(), true)
	if err == nil {
		_, err = l.Hold(t.Context(), h, pushed.Sequence+1000)
	}
	if err != nil {
		t.Fatal(err)
	}
	if code, _, said := r.push(t.Context(), "-abort"); code != exitDone {
		t.Fatal(said)
	}
	if h, _, err := l.Head(t.Context(), true); err != nil || h.Hold != pushed.Sequence {
		t.Errorf("head %+v, %v", h, err)
	}
}

// While another release is tried, a push that is held cannot be asked for: nobody would say that it is the one being tried.
func TestRetryNamesTheReleaseThatAnEpochIsOpenFor(t *testing.T) {
	r := newPackedRig(t, map[string]string{"index.php": "1"})
	_, l := r.ledger()
	opened, _ := r.deploy()
	read, err := r.store.Pointer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	note, err := fleet.NewNote(read.Text)
	if err == nil {
		err = l.PutNote(t.Context(), note)
	}
	if err == nil {
		_, err = l.Open(t.Context(), fleet.Head{}, note, "i-1", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	refusal := func() string {
		t.Helper()
		code, _, said := r.push(t.Context(), "-retry")
		if code == exitDone || !strings.Contains(said, "retry: epoch 1 is open for "+string(opened.Release)) {
			t.Errorf("exit code %d: %s", code, said)
		}
		return said
	}
	if said := refusal(); !strings.Contains(said, "it is being tried") {
		t.Errorf("of the release itself: %s", said)
	}
	r.write("index.php", "2")
	r.deploy()
	if said := refusal(); strings.Contains(said, "being tried") || !strings.Contains(said, "ask again when it is over") {
		t.Errorf("of a newer one: %s", said)
	}
}
