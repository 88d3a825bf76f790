package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// workers are how many requests run at a time at most: more than php-fpm has workers, fewer than nginx takes connections. A
// request that finds none free begins late, and how long it took counts from when it was due.
const workers = 24

// answer is what one request got.
type answer struct {
	due, begin, end time.Time
	releases        string // of all files that made it, comma-separated
	err             error
}

func (a answer) took() time.Duration { return a.end.Sub(a.due) }

// load sends requests at a fixed rate until it is stopped, however long the answers take: a visitor does not wait for those before.
type load struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	sent    int
	answers []answer
}

// startLoad asks for the pages in turn, so many times a second.
func startLoad(url string, pages []string, rate int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	began := time.Now()
	for range workers {
		l.wait.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				n := l.next()
				due := began.Add(time.Duration(n) * time.Second / time.Duration(rate))
				if sleep(ctx, time.Until(due)) != nil {
					return
				}
				a := ask(client, url+pages[n%len(pages)])
				a.due = due
				l.mu.Lock()
				l.answers = append(l.answers, a)
				l.mu.Unlock()
			}
		})
	}
	return l
}

// next is the number of the next request.
func (l *load) next() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	return l.sent - 1
}

// answered is how many answers there are.
func (l *load) answered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers)
}

// stop ends the requests, the last ones complete, and returns all answers. It may be called again.
func (l *load) stop() []answer {
	l.cancel()
	l.wait.Wait()
	return l.answers
}

// What every page ends with: the releases that its files are from.
var (
	mark    = []byte("<!-- releases ")
	markEnd = []byte(" --></html>\n")
)

// ask sends one request. A page that is not whole is an error.
func ask(client *http.Client, url string) (a answer) {
	a.begin = time.Now()
	defer func() { a.end = time.Now() }()
	resp, err := client.Get(url)
	if err != nil {
		a.err = err
		return a
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		a.err = err
	case resp.StatusCode != http.StatusOK:
		a.err = fmt.Errorf("%s: %s: %.300s", url, resp.Status, text)
	default:
		a.releases, a.err = releases(text)
	}
	return a
}

// releases reads the end of a page.
func releases(page []byte) (string, error) {
	_, rest, ok := bytes.Cut(page, mark)
	text, end, whole := bytes.Cut(rest, markEnd)
	if !ok || !whole || len(end) > 0 || len(text) == 0 {
		return "", fmt.Errorf("the page is not whole: %d bytes, it ends with %q", len(page), page[max(0, len(page)-200):])
	}
	return string(text), nil
}
