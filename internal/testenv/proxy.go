package testenv

import (
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy on loopback that a test breaks at will. It starts transparent; each fault holds
// until [Proxy.Restore]. Its methods may be called from any goroutine.
type Proxy struct {
	target   string // host:port
	listener net.Listener
	wait     sync.WaitGroup

	mu      sync.Mutex
	refuse  bool
	mute    bool
	delay   time.Duration
	uplink  int   // bytes of requests a second on each connection; 0: any
	rate    int   // bytes of replies a second on each connection; 0: any
	most    int64 // bytes of replies on a connection, then it is reset; 0: any
	conns   map[*relay]bool
	dropped int64
	passed  int64
}

// relay is one connection through the proxy.
type relay struct {
	client, server *net.TCPConn
	brought        int64 // bytes of replies since CutAfter
	lossy          bool  // bytes of a reply are missing: it must never be used again
}

// NewProxy starts a proxy to target (host:port, or a URL whose host and port count) until the end of
// the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal("start proxy:", err)
	}
	return serveProxy(t, l, target)
}

func serveProxy(t testing.TB, l net.Listener, target string) *Proxy {
	if u, err := url.Parse(target); err == nil && strings.Contains(target, "://") {
		target = u.Host
	}
	p := &Proxy{target: target, listener: l, conns: make(map[*relay]bool)}
	p.wait.Go(p.accept)
	t.Cleanup(func() {
		p.Refuse()
		l.Close()
		p.wait.Wait()
	})
	return p
}

// Addr is where the proxy listens, host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL is http://Addr.
func (p *Proxy) URL() string { return "http://" + p.Addr() }

// Refuse resets all connections, and each new one as soon as it is made.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	p.refuse = true
	p.mu.Unlock()
	p.Cut()
}

// Cut resets all connections that are open now. New ones work.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.conns {
		r.reset()
	}
}

// DropReplies lets requests through and swallows what the server answers, so that a write happens and
// its writer never hears of it.
func (p *Proxy) DropReplies() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
}

// Dropped is how many bytes of replies were swallowed so far: above zero, a request has arrived.
func (p *Proxy) Dropped() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped
}

// Delay holds back what clients send by d: each request of a connection takes that much longer, its
// bandwidth stays.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Slow lets replies through at a rate in bytes a second, for each connection.
func (p *Proxy) Slow(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
}

// CutAfter resets each connection, those that stand too, when it has brought so many more bytes of replies.
func (p *Proxy) CutAfter(most int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = most
	for r := range p.conns {
		r.brought = 0
		r.narrow()
	}
}

// Passed is how many bytes of replies have reached clients so far.
func (p *Proxy) Passed() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

// SlowUplink lets each connection's requests through at no more than so many bytes a second, beyond what the kernel's buffers take.
func (p *Proxy) SlowUplink(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.uplink = rate
}

// Restore ends all faults. Connections that lost part of a reply are reset.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.mute, p.delay, p.rate, p.most = false, false, 0, 0, 0
	p.uplink = 0
	for r := range p.conns {
		if r.lossy {
			r.reset()
		}
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() { p.serve(c.(*net.TCPConn)) })
	}
}

// serve relays one connection until both directions have ended.
func (p *Proxy) serve(client *net.TCPConn) {
	r := &relay{client: client}
	defer r.reset()
	if p.refusing() {
		return
	}
	c, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		return
	}
	r.server = c.(*net.TCPConn)

	p.mu.Lock()
	if p.refuse {
		p.mu.Unlock()
		return
	}
	p.conns[r] = true
	if p.most > 0 {
		r.narrow()
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, r)
		p.mu.Unlock()
	}()

	var both sync.WaitGroup
	both.Go(func() { p.requests(r) })
	both.Go(func() { p.replies(r) })
	both.Wait()
}

func (p *Proxy) refusing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refuse
}

// requests copies from the client to the server, each piece when its delay is over.
func (p *Proxy) requests(r *relay) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 256)
	var writer sync.WaitGroup
	writer.Go(func() {
		for x := range pieces {
			time.Sleep(time.Until(x.due))
			if _, err := r.server.Write(x.data); err != nil {
				r.client.CloseRead() // ends the reader below
			}
		}
		r.server.CloseWrite()
	})
	for {
		buf := make([]byte, 32<<10)
		n, err := r.client.Read(buf)
		if n > 0 {
			p.mu.Lock()
			due, uplink := time.Now().Add(p.delay), p.uplink
			p.mu.Unlock()
			if uplink > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(uplink))
			}
			pieces <- piece{due, buf[:n]}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	writer.Wait()
}

// replies copies from the server to the client, or to nowhere.
func (p *Proxy) replies(r *relay) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.server.Read(buf)
		if n > 0 && !p.swallow(r, n) && !p.pass(r, buf[:n]) {
			break
		}
		if err != nil {
			if err == io.EOF {
				r.client.CloseWrite()
				return
			}
			break
		}
	}
	r.reset()
}

// pass hands a piece of a reply on, as slowly as is asked for, and says whether there may be more.
func (p *Proxy) pass(r *relay, piece []byte) bool {
	for len(piece) > 0 {
		p.mu.Lock()
		now, wait := piece, time.Duration(0)
		if p.rate > 0 {
			now = piece[:min(len(piece), max(p.rate/10, 1))]
			wait = time.Duration(len(now)) * time.Second / time.Duration(p.rate)
		}
		end := p.most > 0 && r.brought+int64(len(now)) > p.most
		if end {
			now = now[:p.most-r.brought]
		}
		r.brought += int64(len(now))
		p.passed += int64(len(now))
		p.mu.Unlock()
		time.Sleep(wait)
		if _, err := r.client.Write(now); err != nil || end {
			return false
		}
		piece = piece[len(now):]
	}
	return true
}

// swallow counts n bytes of a reply as lost if replies are to be dropped, and says whether they are.
func (p *Proxy) swallow(r *relay, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.mute && !r.lossy {
		return false
	}
	r.lossy = true
	p.dropped += int64(n)
	return true
}

// narrow keeps what is on its way to the client small: a reset loses it, and it was counted.
func (r *relay) narrow() { _ = r.client.SetWriteBuffer(16 << 10) }

// reset closes both ends; the peers see a reset, not an orderly end.
func (r *relay) reset() {
	for _, c := range []*net.TCPConn{r.client, r.server} {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}
