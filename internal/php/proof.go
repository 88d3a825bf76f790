package php

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// ErrStale says that what answers runs from another release than the one that is live: flipped and yet stale. It is the
// site's answer that says so ([Health]) or a pool's ([Prove]).
var ErrStale = errors.New("the site runs from another release")

// cureStale is for a pool whose idea of the live link is another one than the agent's.
const cureStale = "root (or DEPLOY_ROOT) of the local route must be <root>/active of the agent's settings, as the pool sees it: " +
	"share/nginx/local.conf; a pool that sees another file system (chroot, a mount of its own) must be restarted"

// cureVisitors is for a web server that hands PHP another release than the live one.
const cureVisitors = "the web server must pass $realpath_root of <root>/active, with open_file_cache off: share/nginx/site.conf; " +
	"one that was started in another file system (chroot, a mount of its own) must be restarted"

// StaleError is a pool, or the path that visitors take, that runs from another folder than that of the live release. It is an [ErrStale].
type StaleError struct {
	URL      string // the route, or the page of visitors
	Root     string // where the pool finds the site; of the path of visitors the release
	Release  string // the release that is live
	Visitors bool   // it is the path that visitors take
}

// saysStale begins the text of every [StaleError], and what follows tells the two kinds apart: so much is left of it where texts are cut.
const saysStale, saysVisitors = "flipped but stale: ", "flipped but stale: visitors of "

// Error is what is wrong and the cure on one line, the cure last.
func (e *StaleError) Error() string {
	if e.Visitors {
		return fmt.Sprintf(saysVisitors+"%s get %q, not %s (%s)", e.URL, e.Root, e.Release, e.Cure())
	}
	return fmt.Sprintf(saysStale+"%s runs from %q, not from %s (%s)", e.URL, e.Root, e.Release, e.Cure())
}

// Cure is what a person can do, one line.
func (e *StaleError) Cure() string {
	if e.Visitors {
		return cureVisitors
	}
	return cureStale
}

// Unwrap returns [ErrStale].
func (e *StaleError) Unwrap() error { return ErrStale }

// StaleCure is the cure of a text that holds a [StaleError]'s, also where its end was cut off, as the table does; empty: it holds none.
func StaleCure(text string) string {
	e := StaleError{Visitors: strings.Contains(text, saysVisitors)}
	if !e.Visitors && !strings.Contains(text, saysStale) {
		return ""
	}
	return e.Cure()
}

// Prove compares where pools say that they run from with the release that is live: an error joins a [*StaleError] for each
// that is elsewhere. A pool that finds no root at all is no error, since it may see the link under another path; silent lists
// the routes of these, which prove nothing.
func Prove(pools []Status, release string) (silent []string, err error) {
	var errs []error
	for _, s := range pools {
		switch {
		case s.Root == "":
			silent = append(silent, s.URL)
		// Not s.Release: below a release whose id is no time, the probe cannot tell the release from a folder in it.
		case !slices.Contains(strings.Split(s.Root, "/"), release):
			errs = append(errs, &StaleError{URL: s.URL, Root: s.Root, Release: release})
		}
	}
	return silent, errors.Join(errs...)
}

// Site is the path that visitors take: a URL of the site, as that of a health check.
type Site struct {
	URL, Host string        // as of Options
	Timeout   time.Duration // of one request; 0: none but the context's
}

// Seen is what a site's page /_deploy/release says.
type Seen struct {
	Release  string // empty for an id that is no time
	Resolved bool   // PHP got a root without a link in it
}

// ErrNoPage says that a site has no page that tells which release PHP serves: it does not use the packaged snippet.
var ErrNoPage = errors.New("no page /_deploy/release")

// Runs asks PHP, over the path that visitors take, whether it serves a release. It fails with a [*StaleError] when that is another
// one, with [ErrNoPage] (wrapped) when nobody can be asked, and with a *RouteError when there is no answer.
func (s Site) Runs(ctx context.Context, release string) (Seen, error) {
	r, err := newRoute(s.page(release), s.Host)
	if err != nil {
		return Seen{}, err
	}
	defer r.close()
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	a, err := r.get(ctx, "")
	if err != nil {
		return Seen{}, r.explain(err, cureSite)
	}
	got, err := r.parse(a, "release")
	switch {
	case err != nil && a.status >= http.StatusInternalServerError:
		return Seen{}, err
	case err != nil:
		return Seen{}, fmt.Errorf("%w: %w", ErrNoPage, err)
	case !got.Is:
		return Seen{}, &StaleError{URL: r.name, Root: got.Release, Release: release, Visitors: true}
	}
	return Seen{got.Release, got.Resolved}, nil
}

// page is the address of /_deploy/release at the site.
func (s Site) page(release string) string {
	page := "/_deploy/release?is=" + url.QueryEscape(release)
	if rest, ok := strings.CutPrefix(s.URL, "unix:"); ok {
		socket, _, _ := strings.Cut(rest, ":")
		return "unix:" + socket + ":" + page
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		return s.URL
	}
	return u.Scheme + "://" + u.Host + page
}
