// Package php asks the site's PHP what it runs: through a local route of the web server, the only way
// into a pool's opcache (the command line's PHP has a cache of its own).
//
// The route's other end is share/probe.php, in the same pool as the site. A request is a POST with the
// header X-Deploy-Opcache: 1 and the form value action, one of status and reset. The answer is one JSON
// object of at most 64 KB that begins with who answers ("probe", "protocol"); all that is not exactly
// that is a [*RouteError], which says what is wrong and what to do about it.
//
// A route is a URL: http://127.0.0.1:8901/_deploy/opcache, or unix:/path/to.sock:/uri for a web server
// that listens on a socket. Redirects are never followed, since who redirects is another virtual host;
// proxies of the environment are never used.
//
// [Prove] compares where the pools say that they run from with what is live. [Health] looks at the site itself as a
// visitor would, by the same rules.
package php

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// ModeOff is the mode in which PHP is left alone.
const ModeOff = "off"

// Options says how to reach the pools. It is opcache of the settings.
type Options struct {
	Mode    string        // ModeOff: no request is ever made; every other mode has the route
	URLs    []string      // a route for each pool; none is like ModeOff
	Host    string        // the Host header; empty: the URL's
	Timeout time.Duration // of one request; 0: none but the context's
}

// Opcache is the opcache of all pools of a site. Its methods ask all pools at once, and may be called
// from several goroutines.
type Opcache struct{ options Options }

// New takes the options over; it makes no request and does not look at the URLs.
func New(o Options) *Opcache { return &Opcache{options: o} }

// Except is the same without the pools of some routes, as they are written in the options.
func (o *Opcache) Except(routes map[string]bool) *Opcache {
	rest := o.options
	rest.URLs = slices.DeleteFunc(slices.Clone(rest.URLs), func(url string) bool { return routes[url] })
	return New(rest)
}

// Status is a pool's answer.
type Status struct {
	URL        string `json:"-"` // the route, as in the options
	PHP        string `json:"php"`
	Root       string `json:"root"`       // where the link `active` leads, past all caches; empty: nowhere
	Release    string `json:"release"`    // the release that Root is in
	Enabled    bool   `json:"enabled"`    // opcache is on for this pool
	Restricted bool   `json:"restricted"` // PHP's settings forbid the probe to look; all numbers are 0
	Restarting bool   `json:"restarting"` // a reset waits for running requests to end
	Full       bool   `json:"full"`       // nothing more is cached

	Scripts int `json:"scripts"` // cached files
	Keys    int `json:"keys"`    // of MaxKeys; a file takes one or more
	MaxKeys int `json:"max_keys"`

	UsedMemory   int64 `json:"used_memory"` // bytes, as are the next two
	FreeMemory   int64 `json:"free_memory"`
	WastedMemory int64 `json:"wasted_memory"`
	LastRestart  int64 `json:"last_restart"` // when it was emptied, Unix seconds; 0: never
}

// Status asks every pool. It returns the answers there are, in the order of the URLs, and the errors of
// the other pools joined, each a *RouteError (or context.Canceled). Callers name the action: an error
// begins with the URL.
func (o *Opcache) Status(ctx context.Context) ([]Status, error) { return o.ask(ctx, "status") }

// Reset empties opcache of every pool, with results as of Status. PHP empties it before the next
// request that finds nobody in the cache; a reset that is already waiting for that is a success, and so
// is a pool whose opcache is off, for it has nothing to empty.
func (o *Opcache) Reset(ctx context.Context) ([]Status, error) { return o.ask(ctx, "reset") }

func (o *Opcache) ask(ctx context.Context, action string) ([]Status, error) {
	if o.options.Mode == ModeOff {
		return nil, nil
	}
	answers := make([]*Status, len(o.options.URLs))
	errs := make([]error, len(o.options.URLs))
	var wg sync.WaitGroup
	for i, address := range o.options.URLs {
		wg.Go(func() {
			answers[i], errs[i] = o.askOne(ctx, address, action)
		})
	}
	wg.Wait()
	var all []Status
	for _, s := range answers {
		if s != nil {
			all = append(all, *s)
		}
	}
	return all, errors.Join(errs...)
}

func (o *Opcache) askOne(ctx context.Context, address, action string) (*Status, error) {
	r, err := newRoute(address, o.options.Host)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if o.options.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.options.Timeout)
		defer cancel()
	}
	got, err := r.post(ctx, url.Values{"action": {action}})
	if err != nil {
		return nil, r.explain(err, cureRefused)
	}
	s, err := r.parse(got, action)
	if err != nil {
		return nil, err
	}
	s.URL = address
	return s, nil
}

// RouteError says why a route gave no answer.
type RouteError struct {
	URL   string
	Cause string // what happened
	Cure  string // what a person can do, one line
	Err   error  // the network's error, if it was one
}

// Error is the URL, the cause and the cure on one line.
func (e *RouteError) Error() string {
	text := fmt.Sprintf("%s: %s", e.URL, e.Cause)
	if e.Cure != "" {
		text += " (" + e.Cure + ")"
	}
	return text
}

// Unwrap returns the network's error.
func (e *RouteError) Unwrap() error { return e.Err }

// excerpt is the beginning of an answer on one line, for messages.
func excerpt(body []byte) string {
	const size = 200
	cut := len(body) > size
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body[:min(size, len(body))]), "")), " ")
	if cut {
		text += "…"
	}
	return text
}
