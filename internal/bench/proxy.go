package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// proxy stands between every contender and the S3 server: it adds the latency of a network to each request, counts requests and
// bytes, and can hold requests to a rate, as S3 does for a prefix. HTTP/1.1 without pipelining is assumed, which is what all
// contenders speak: a request begins with the first bytes from the client after bytes from the server.
type proxy struct {
	target   string // host:port
	listener net.Listener
	wait     sync.WaitGroup

	delay    atomic.Int64 // nanoseconds before anything from a client goes on
	interval atomic.Int64 // nanoseconds between two requests at the capped rate, 0: no cap
	rate     atomic.Int64 // bytes a second to all clients together, 0: no cap

	requests, up, down atomic.Int64
	held               atomic.Int64 // nanoseconds that requests waited for the cap, together

	mu    sync.Mutex
	turn  time.Time // when the next request may begin at the capped rate
	free  time.Time // when the next bytes may go down at theirs
	conns map[net.Conn]bool
	watch *watch
}

// watch waits for the n-th byte down.
type watch struct {
	at   int64
	done chan struct{}
}

// traffic is what passed a proxy.
type traffic struct {
	Requests int64 `json:"requests"`
	Up       int64 `json:"up"`   // bytes from clients, with HTTP's own
	Down     int64 `json:"down"` // bytes from the server
}

func (t traffic) minus(o traffic) traffic {
	return traffic{t.Requests - o.Requests, t.Up - o.Up, t.Down - o.Down}
}

// startProxy listens on a free port of loopback.
func startProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{target: target, listener: l, conns: map[net.Conn]bool{}}
	p.wait.Go(p.accept)
	return p, nil
}

// URL is where clients go.
func (p *proxy) URL() string { return "http://" + p.listener.Addr().String() }

// Close ends all connections and returns when their goroutines are gone.
func (p *proxy) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	for c := range p.conns {
		c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.wait.Wait()
	return err
}

// traffic returns the totals so far.
func (p *proxy) traffic() traffic { return traffic{p.requests.Load(), p.up.Load(), p.down.Load()} }

// latency sets what each request waits; what follows it on the connection is as late, and no slower.
func (p *proxy) latency(d time.Duration) { p.delay.Store(int64(d)) }

// limit caps the requests of all clients together; 0: no cap.
func (p *proxy) limit(perSecond int) {
	if p.interval.Store(0); perSecond > 0 {
		p.interval.Store(int64(time.Second) / int64(perSecond))
	}
}

// bandwidth caps what goes to all clients together; 0: no cap.
func (p *proxy) bandwidth(bytesPerSecond int64) { p.rate.Store(bytesPerSecond) }

// downAt is closed when so many bytes more have gone to clients.
func (p *proxy) downAt(bytes int64) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watch = &watch{p.down.Load() + bytes, make(chan struct{})}
	return p.watch.done
}

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() { p.serve(c) })
	}
}

// serve relays one connection until either side ends it.
func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		client.Close()
		return
	}
	if !p.keep(client, server) {
		return
	}
	// What waits here for a slow client has not reached it: it shall not count as if.
	_ = client.(*net.TCPConn).SetWriteBuffer(64 << 10)
	var answered atomic.Bool // the server spoke last: what the client says next is a request
	answered.Store(true)
	both, end := context.WithCancel(context.Background())
	p.wait.Go(func() { defer end(); p.requestsOf(client, server, &answered) })
	p.wait.Go(func() { defer end(); p.replies(server, client, &answered) })
	<-both.Done()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
	client.Close()
	server.Close()
}

// keep notes the two ends for Close; false: that was before.
func (p *proxy) keep(ends ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range ends {
		if p.conns == nil {
			c.Close()
			continue
		}
		p.conns[c] = true
	}
	return p.conns != nil
}

// requestsOf copies from the client to the server, each piece when its delay is over.
func (p *proxy) requestsOf(client io.Reader, server io.Writer, answered *atomic.Bool) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 256)
	var writer sync.WaitGroup
	var broken atomic.Bool
	writer.Go(func() {
		for x := range pieces {
			time.Sleep(time.Until(x.due))
			if _, err := server.Write(x.data); err != nil {
				broken.Store(true)
			}
		}
	})
	for !broken.Load() {
		buf := make([]byte, 64<<10)
		n, err := client.Read(buf)
		if n > 0 {
			p.up.Add(int64(n))
			var held time.Duration
			if answered.Swap(false) {
				p.requests.Add(1)
				held = p.hold()
			}
			pieces <- piece{time.Now().Add(time.Duration(p.delay.Load()) + held), buf[:n]}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	writer.Wait()
}

// hold takes a request's place in the queue of the capped rate and says how long it waits there.
func (p *proxy) hold() time.Duration {
	gap := time.Duration(p.interval.Load())
	if gap == 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.turn.Before(now) {
		p.turn = now
	}
	wait := p.turn.Sub(now)
	p.turn = p.turn.Add(gap)
	p.held.Add(int64(wait))
	return wait
}

// goAhead is what a server says in between, when a client asked whether to send its body: no answer yet.
var goAhead = []byte("HTTP/1.1 100")

// replies copies from the server to the client.
func (p *proxy) replies(server io.Reader, client io.Writer, answered *atomic.Bool) {
	buf := make([]byte, 256<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			if !bytes.HasPrefix(buf[:n], goAhead) {
				answered.Store(true)
			}
			p.passed(int64(n)) // first, so that who has an answer finds it counted
			if _, werr := client.Write(buf[:n]); werr != nil {
				return
			}
			p.rest(int64(n))
		}
		if err != nil {
			return
		}
	}
}

// rest waits as long as n bytes take at the capped bandwidth, behind those of other connections.
func (p *proxy) rest(n int64) {
	rate := p.rate.Load()
	if rate == 0 {
		return
	}
	p.mu.Lock()
	if now := time.Now(); p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	until := p.free
	p.mu.Unlock()
	time.Sleep(time.Until(until))
}

// passed counts bytes down, and wakes who waits for them.
func (p *proxy) passed(n int64) {
	total := p.down.Add(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watch != nil && total >= p.watch.at {
		close(p.watch.done)
		p.watch = nil
	}
}
