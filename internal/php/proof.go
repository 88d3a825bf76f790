package php

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrStale says that what answers runs from another release than the one that is live: flipped and yet stale. It is the
// site's answer that says so ([Health]) or a pool's ([Prove]).
var ErrStale = errors.New("the site runs from another release")

// cureStale is for a pool whose idea of the live link is another one than the agent's.
const cureStale = "root (or DEPLOY_ROOT) of the local route must be <root>/active of the agent's settings, as the pool sees it: " +
	"share/nginx/local.conf; a pool that sees another file system (chroot, a mount of its own) must be restarted"

// StaleError is a pool that runs from another folder than that of the live release. It is an [ErrStale].
type StaleError struct {
	URL     string // the route
	Root    string // where the pool finds the site
	Release string // the release that is live
}

// Error is the URL, what is wrong and the cure on one line.
func (e *StaleError) Error() string {
	return fmt.Sprintf("%s: flipped but stale: PHP runs from %q, not from %s (%s)", e.URL, e.Root, e.Release, cureStale)
}

// Unwrap returns [ErrStale].
func (e *StaleError) Unwrap() error { return ErrStale }

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
