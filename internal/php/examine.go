package php

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Setup is what [Examine] looks at.
type Setup struct {
	Opcache   Options
	Site      Site     // of the health check; without a URL the site is not asked
	Root      string   // where releases lie
	Live      string   // the release that is live; empty: none yet
	Reload    bool     // php-fpm is reloaded after a flip
	Addresses []string // of this machine, by which others reach it
}

// Verdict is how a [Finding] is to be taken.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn" // it works, or nobody can tell
	Fail Verdict = "fail"
	Skip Verdict = "skip" // it was not tried
)

// Finding is one thing that was looked at.
type Finding struct {
	Verdict Verdict
	What    string // what was looked at, and what was found
	Cure    string // what a person can do; empty when it is OK
}

// examTime bounds one request from an address that may drop packets. A variable for tests.
var examTime = 2 * time.Second

// seldom is the least opcache.revalidate_freq at which opcache asks the disk as good as never: seconds of a day.
const seldom = 86400

// Examine looks at web server and PHP as they are set up: it asks, and changes nothing. It never fails; what it could not find out is
// a finding.
func Examine(ctx context.Context, s Setup) []Finding {
	o := New(s.Opcache)
	var all []Finding
	if s.Opcache.Mode == ModeOff || len(s.Opcache.URLs) == 0 {
		all = append(all, Finding{
			Warn, "opcache: no route to PHP: nothing is compiled before a flip, and nothing proves what PHP serves",
			"set opcache.url, and give it a server block: share/nginx/local.conf",
		})
	} else {
		for _, address := range s.Opcache.URLs {
			all = append(all, s.pool(ctx, o, address)...)
		}
	}
	all = append(all, s.site(ctx, o)...)
	return append(all, s.outside(ctx)...)
}

// pool looks at one pool through its route.
func (s Setup) pool(ctx context.Context, o *Opcache, address string) []Finding {
	got, err := o.askOne(ctx, address, "status")
	var e *RouteError
	switch {
	case errors.As(err, &e):
		return []Finding{{Fail, "opcache route " + address + ": " + e.Cause, e.Cure}}
	case err != nil:
		return []Finding{{Fail, "opcache route " + err.Error(), ""}}
	}
	all := []Finding{{OK, "opcache route " + address + ": PHP " + got.PHP + " answers", ""}, s.place(*got)}
	add := func(when bool, v Verdict, what, cure string) {
		if when {
			all = append(all, Finding{v, "opcache of " + address + ": " + what, cure})
		}
	}
	if why := got.closed(); why != "" {
		add(true, Fail, why, "")
		return all
	}
	set := got.Settings
	add(!set.UseCwd, Fail, "opcache.use_cwd is 0: files of two releases are mixed", "opcache.use_cwd=1, as in share/php/opcache.ini")
	add(set.ValidateTimestamps && set.RevalidateFreq < seldom, Warn, "opcache.validate_timestamps is 1: requests ask the disk for times that never change", "opcache.validate_timestamps=0, as in share/php/opcache.ini")
	add(set.FileUpdateProtection > 0, Warn, fmt.Sprintf("opcache.file_update_protection is %d: what hooks make is not kept until it is as old", set.FileUpdateProtection),
		"opcache.file_update_protection=0, as in share/php/opcache.ini")
	add(set.FileCache != "" && !set.FileCacheUsed, Warn, "opcache.file_cache: PHP does not use "+set.FileCache,
		"make the folder for the user of PHP with mode 0700 and restart php-fpm (share/php/opcache.ini); where there is an open_basedir, add the folder")
	add(set.FileCache != "" && o.options.Mode == ModeReset, Warn, "opcache.file_cache grows for ever: what it keeps of releases that are gone is removed in mode warm only", "opcache.mode: warm, or do without opcache.file_cache")
	add(set.FileCache != "" && !set.ValidateTimestamps, Warn, "opcache.file_cache without opcache.validate_timestamps: a PHP file outside of the releases that somebody edits stays as it was, also when php-fpm is restarted",
		"opcache.validate_timestamps=1 and opcache.revalidate_freq=31536000, as in share/php/opcache.ini")
	add(set.Preload != "" && !s.Reload, Warn, "opcache.preload keeps code of the release that was live when php-fpm started", "name php-fpm's unit in `restart`, or do without preload")
	why := got.outOfStrings()
	add(why != "", Warn, why+": each file has copies of its own of the rest", "raise opcache.interned_strings_buffer: share/php/opcache.ini")
	if s.Live != "" {
		if files, err := scripts(filepath.Join(s.Root, s.Live)); err == nil {
			empty := *got // what it would hold after a reset
			empty.FreeMemory, empty.WastedMemory, empty.Keys = got.FreeMemory+got.WastedMemory+got.UsedMemory-got.UsedStrings-got.FreeStrings, 0, 0
			empty.UsedMemory = got.UsedStrings + got.FreeStrings
			why := o.sizes.lacks(empty, slices.Concat(files, files))
			add(why != "", Warn, "two releases do not fit: "+strings.TrimPrefix(why, "it does not fit: "), "raise the setting that is named: share/php/opcache.ini")
		}
	}
	if len(all) == 2 {
		all = append(all, Finding{OK, "opcache of " + address + ": its settings suit releases", ""})
	}
	return all
}

// place compares where a pool finds the site with where the agent has it.
func (s Setup) place(got Status) Finding {
	root, err := filepath.EvalSymlinks(s.Root)
	if err != nil {
		root = s.Root
	}
	what := fmt.Sprintf("opcache route %s: it sees the site in %q", got.URL, got.Base)
	switch {
	case s.Live != "" && slices.Contains(strings.Split(got.Root, "/"), s.Live) && got.Base != "" && path.Base(got.Root) == s.Live:
		return Finding{OK, what, ""}
	case s.Live == "" && got.Base == root:
		return Finding{OK, what, ""}
	case s.Live == "":
		return Finding{Warn, what + ", and not in " + root, cureStale}
	}
	return Finding{Fail, fmt.Sprintf("%s: it runs from %q, and live is %s", what, got.Root, s.Live), cureStale}
}

// site looks at the path that visitors take.
func (s Setup) site(ctx context.Context, o *Opcache) []Finding {
	switch {
	case s.Site.URL == "":
		return []Finding{{Warn, "web server: there is no health_check.url to ask it by", "set health_check.url to a page of the site on this machine"}}
	case s.Live == "":
		return []Finding{{OK, "web server: nothing is live yet", ""}}
	}
	if by := s.linked(ctx, o); by != "" {
		return []Finding{{
			Fail, "web server: it hands PHP the link instead of where it leads (" + by + "): a flip would mix releases or stay unseen",
			cureVisitors + "; then restart php-fpm, whose opcache remembers the name",
		}}
	}
	seen, err := s.Site.Runs(ctx, s.Live)
	var e *RouteError
	var stale *StaleError
	switch {
	case errors.Is(err, ErrNoPage):
		return []Finding{{Warn, "web server: the site has no page /_deploy/release: nothing proves what visitors get", "include share/nginx/site.conf (share/apache/site.conf) in the site's server block"}}
	case errors.As(err, &stale):
		return []Finding{{Fail, fmt.Sprintf("web server: PHP serves %q there, and live is %s", stale.Root, s.Live), stale.Cure()}}
	case errors.As(err, &e):
		return []Finding{{Fail, "web server: " + e.URL + ": " + e.Cause, e.Cure}}
	case err != nil:
		return []Finding{{Fail, "web server: " + err.Error(), ""}}
	case !seen.Resolved:
		return []Finding{{Fail, "web server: it hands PHP a root with a link in it: a flip would mix releases or stay unseen", cureVisitors}}
	}
	return []Finding{{OK, "web server: PHP gets the release without a link in its path", ""}}
}

// linked is a file that PHP was asked for through the link: opcache remembers under which name a script came. The page of the health
// check is asked for first. It works with any web server's settings, while nothing on the site answers by itself.
func (s Setup) linked(ctx context.Context, o *Opcache) string {
	all, err := scripts(filepath.Join(s.Root, s.Live))
	if err != nil || s.Opcache.Mode == ModeOff {
		return ""
	}
	entries := slices.DeleteFunc(all, func(f script) bool { return strings.Count(f.path, "/") > 1 }) // scripts that visitors ask for lie at the top
	entries = entries[:min(len(entries), listFiles)]
	_ = Health{URL: s.Site.URL, Host: s.Site.Host, Timeout: s.Site.Timeout}.Check(ctx) // whatever it says, PHP was asked
	for _, address := range s.Opcache.URLs {
		got, err := o.send(ctx, address, url.Values{"action": {"linked"}, "files": {names(entries)}})
		if err == nil && len(got.Linked) > 0 && got.Linked[0] >= 0 && got.Linked[0] < len(entries) {
			return entries[got.Linked[0]].path
		}
	}
	return ""
}

// outside asks for the probe as others could: at this machine's addresses, on the ports of the site, of the route and the usual ones. What it
// answers to them is open to whoever reaches the machine.
func (s Setup) outside(ctx context.Context) []Finding {
	schemes, paths := map[string]string{"80": "http", "443": "https"}, []string{"/_deploy/opcache"} // schemes by port
	for _, address := range append([]string{s.Site.URL}, s.Opcache.URLs...) {
		rest, socket := strings.CutPrefix(address, "unix:")
		if _, uri, ok := strings.Cut(rest, ":"); socket && ok && address != s.Site.URL {
			paths = append(paths, uri)
		}
		if u, err := url.Parse(address); err == nil && !socket && address != "" {
			if u.Port() != "" {
				schemes[u.Port()] = u.Scheme
			}
			if address != s.Site.URL {
				paths = append(paths, u.Path)
			}
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []string
	for _, address := range s.Addresses {
		for port, scheme := range schemes {
			for _, uri := range paths {
				target := scheme + "://" + net.JoinHostPort(address, port) + uri
				wg.Go(func() {
					if s.answers(ctx, target, address) {
						mu.Lock()
						defer mu.Unlock()
						open = append(open, target)
					}
				})
			}
		}
	}
	wg.Wait()
	if len(open) > 0 {
		slices.Sort(open)
		return []Finding{{
			Fail, "probe: whoever reaches this machine can empty opcache: " + strings.Join(open, ", "),
			"give the route a server block of its own that listens on 127.0.0.1 or a socket only, without real_ip: share/nginx/local.conf",
		}}
	}
	return []Finding{{OK, fmt.Sprintf("probe: it answers at none of this machine's %d other addresses", len(s.Addresses)), ""}}
}

// answers says whether the probe is at an address, for who comes from there.
func (s Setup) answers(ctx context.Context, target, from string) bool {
	ctx, cancel := context.WithTimeout(ctx, examTime)
	defer cancel()
	host := s.Site.Host
	if host == "" {
		host = s.Opcache.Host
	}
	r, err := newRoute(target, host)
	if err != nil {
		return false
	}
	defer r.close()
	r.outside(from)
	a, err := r.post(ctx, url.Values{"action": {"status"}})
	if err != nil {
		return false
	}
	_, err = r.parse(a, "status")
	return err == nil
}
