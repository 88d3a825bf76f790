// Package php asks the site's PHP what it runs, and has it compile what it is to run next: through a local route of the web
// server, the only way into a pool's opcache (the command line's PHP has a cache of its own).
//
// The route's other end is share/probe.php, in the same pool as the site. A request is a POST with the
// header X-Deploy-Opcache: 1 and a form, whose value action is one of status, compile, linked and reset. The answer is one JSON
// object of at most 64 KB that begins with who answers ("probe", "protocol"); all that is not exactly
// that is a [*RouteError], which says what is wrong and what to do about it.
//
// A route is a URL: http://127.0.0.1:8901/_deploy/opcache, or unix:/path/to.sock:/uri for a web server
// that listens on a socket. Redirects are never followed, since who redirects is another virtual host;
// proxies of the environment are never used.
//
// A release has paths of its own, so a flip leaves nothing in opcache that is wrong, only nothing that is right: the first
// visitors compile. [Opcache.Warm] compiles before the flip, in batches that end after [batchTime] and pause for as long, so
// that it never has more than one worker of a pool, half of the time. Nothing frees what older releases took but a reset, which
// under load is slow and can crash php-fpm (php-src issues 14471, 8739): it is for [Opcache.MakeRoom], on one instance
// at a time and not in a rollout. What a release takes is known once one was compiled; before that it is estimated.
//
// [Prove] compares where the pools say that they run from with what is live, [Site.Runs] asks the same over the path that
// visitors take. [Health] looks at the site itself as a visitor would, by the same rules. [Examine] is for people who set all of
// this up.
package php

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Modes that differ from the usual one: PHP is left alone, or emptied after a flip.
const (
	ModeOff   = "off"
	ModeReset = "reset"
)

// Options says how to reach the pools. It is opcache of the settings.
type Options struct {
	Mode    string        // ModeOff: no request is ever made; every other mode has the route
	URLs    []string      // a route for each pool; none is like ModeOff
	Host    string        // the Host header; empty: the URL's
	Timeout time.Duration // of one request; 0: none but the context's
	Warming time.Duration // the most for the warm-up of one pool; 0: five minutes
}

// Opcache is the opcache of all pools of a site. Its methods may be called from several goroutines.
type Opcache struct {
	options Options
	sizes   *sizes
}

// New takes the options over; it makes no request and does not look at the URLs.
func New(o Options) *Opcache { return &Opcache{options: o, sizes: &sizes{of: map[string]size{}}} }

// Except is the same without the pools of some routes, as they are written in the options.
func (o *Opcache) Except(routes map[string]bool) *Opcache {
	rest := o.options
	rest.URLs = slices.DeleteFunc(slices.Clone(rest.URLs), func(url string) bool { return routes[url] })
	return &Opcache{options: rest, sizes: o.sizes}
}

// Status is a pool's answer. Of a pool whose opcache is off or closed to the probe all numbers are 0.
type Status struct {
	URL        string `json:"-"` // the route, as in the options
	PHP        string `json:"php"`
	Root       string `json:"root"`       // where the link `active` leads, past all caches; empty: nowhere
	Base       string `json:"base"`       // the folder that the link lies in; empty: the pool does not see it
	Release    string `json:"release"`    // the release that Root is in
	Enabled    bool   `json:"enabled"`    // opcache is on for this pool
	Restricted bool   `json:"restricted"` // PHP's settings forbid the probe to look
	Restarting bool   `json:"restarting"` // a reset waits for running requests to end
	Full       bool   `json:"full"`       // nothing more is cached

	Scripts int `json:"scripts"` // cached files
	Keys    int `json:"keys"`    // of MaxKeys; a file takes one or more
	MaxKeys int `json:"max_keys"`

	UsedMemory   int64 `json:"used_memory"` // bytes, as are the next four
	FreeMemory   int64 `json:"free_memory"`
	WastedMemory int64 `json:"wasted_memory"`
	UsedStrings  int64 `json:"used_strings"` // of the interned strings' buffer, which is part of the used memory
	FreeStrings  int64 `json:"free_strings"`
	Started      int64 `json:"started"`      // when php-fpm was started or reloaded, Unix seconds; 0: the probe does not say
	LastRestart  int64 `json:"last_restart"` // when it was emptied, Unix seconds; 0: never
	OwnRestarts  int   `json:"own_restarts"` // how often it was emptied because it was full

	Settings Settings `json:"settings"`
}

// Settings are what php.ini says about opcache, as far as it matters here.
type Settings struct {
	Enable               bool   `json:"enable"`
	ValidateTimestamps   bool   `json:"validate_timestamps"`
	FileUpdateProtection int    `json:"file_update_protection"` // seconds
	RevalidateFreq       int    `json:"revalidate_freq"`        // seconds
	FileCache            string `json:"file_cache"`             // a folder, or nothing
	FileCacheUsed        bool   `json:"file_cache_used"`        // PHP writes there
	FileCacheOnly        bool   `json:"file_cache_only"`
	UseCwd               bool   `json:"use_cwd"`
	Preload              string `json:"preload"` // a file, or nothing
}

// Status asks every pool at once. It returns the answers there are, in the order of the URLs, and the errors of
// the other pools joined, each a *RouteError (or context.Canceled). Callers name the action: an error
// begins with the URL.
func (o *Opcache) Status(ctx context.Context) ([]Status, error) { return o.ask(ctx, "status") }

// Reset empties opcache of every pool at once, with results as of Status. PHP empties it before the next
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

// askOne sends a question without a form of its own to one pool.
func (o *Opcache) askOne(ctx context.Context, address, action string) (*Status, error) {
	got, err := o.send(ctx, address, url.Values{"action": {action}})
	if err != nil {
		return nil, err
	}
	return &got.Status, nil
}

// send sends a form to one pool.
func (o *Opcache) send(ctx context.Context, address string, form url.Values) (*reply, error) {
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
	a, err := r.post(ctx, form)
	if err != nil {
		return nil, r.explain(err, cureRefused)
	}
	got, err := r.parse(a, form.Get("action"))
	if err != nil {
		return nil, err
	}
	got.URL = address
	return got, nil
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

// Unreachable says whether an error is that nobody listens: neither a release nor PHP had a say.
func Unreachable(err error) bool {
	var e *RouteError
	return errors.As(err, &e) && e.Err != nil && (errors.Is(e.Err, syscall.ECONNREFUSED) || errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, fs.ErrPermission))
}

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
