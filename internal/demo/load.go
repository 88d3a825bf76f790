package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// workers send requests to one instance; one is always on its way while another's release changes.
	workers = 2
	// pause is between two requests of a worker: steady, not as fast as it goes.
	pause = 10 * time.Millisecond
	// page has a few milliseconds between the files that it is made of, so that a flip falls into them.
	page = "/?plain&pause=3000"
)

// answer is what one request got.
type answer struct {
	url        string
	begin, end time.Time
	release    string   // the folder that PHP ran from
	parts      []string // what each of its files says it is
	err        error
}

// load sends requests to all instances until it is stopped.
type load struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	answers []answer
}

func startLoad(urls []string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for _, url := range urls {
		for range workers {
			l.wait.Go(func() { l.work(ctx, url) })
		}
	}
	return l
}

// stop ends the requests, the last ones complete, and returns all answers. It may be called again.
func (l *load) stop() []answer {
	l.cancel()
	l.wait.Wait()
	return l.answers
}

// answered waits until n more answers have come.
func (l *load) answered(ctx context.Context, n int) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for until := l.count() + n; l.count() < until; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers)
}

func (l *load) work(ctx context.Context, url string) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		a := ask(client, url)
		l.mu.Lock()
		l.answers = append(l.answers, a)
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ask sends one request.
func ask(client *http.Client, url string) (a answer) {
	a = answer{url: url, begin: time.Now(), parts: make([]string, 3)}
	defer func() { a.end = time.Now() }()
	resp, err := client.Get(url + page)
	if err != nil {
		a.err = err
		return a
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, text)
	}
	if err == nil {
		_, err = fmt.Sscanf(string(text), "release=%s page=%s a=%s b=%s", &a.release, &a.parts[0], &a.parts[1], &a.parts[2])
	}
	a.err = err
	return a
}
