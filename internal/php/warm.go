package php

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// batchTime is how long one request compiles, and then how long nothing does: what a live request waits at most for
	// a worker or a core because of it. Measured with two cores: at 25 ms the slowest live answer while compiling
	// stays within some 30 ms of the usual one, at 200 ms it does not; shorter ones only cost more requests.
	batchTime = 25 * time.Millisecond
	// batchFiles bounds the list of a request that compiles: more than batchTime can.
	batchFiles = 400
	// listFiles bounds that of one that only asks: less than PHP's post_max_size, an answer below answerSize.
	listFiles = 2000
	// passes is how often files that PHP could not compile are tried again, in requests of their own: two files that define
	// the same function cannot be compiled in one request. Each pass compiles at least the first of each batch that can be.
	passes = 4
	// warmTime is the most for a pool's whole warm-up, unless Options says otherwise.
	warmTime = 5 * time.Minute
	// wakeTime is the most to wait for a reset: PHP itself kills who holds one up after opcache.force_restart_timeout, 180 s.
	wakeTime = 15 * time.Second
	// mostScripts is above what opcache.max_accelerated_files can be set to.
	mostScripts = 1_000_000
)

// suffixes are what applications and frameworks (Drupal's last five) give files that PHP runs.
var suffixes = []string{".php", ".phtml", ".inc", ".module", ".install", ".theme", ".profile", ".engine"}

// Warmth is how much of a release a pool holds in opcache.
type Warmth struct {
	URL    string
	Files  int // that PHP could run
	Cached int // of them in opcache
	Broken int // of them that PHP cannot compile: tests for other versions, templates
	// Cold is why the rest is not; empty: the release is warm.
	Cold string
	// Short is what ran short all the same: interned strings, of which each file then has copies of its own. Empty: nothing.
	Short string
}

// String is one line for people.
func (w Warmth) String() string {
	if w.Cold != "" {
		return fmt.Sprintf("cold: %s: %s", w.URL, w.Cold)
	}
	text := fmt.Sprintf("warm: %s: %d of %d files in opcache", w.URL, w.Cached, w.Files)
	if w.Short != "" {
		text += ", but " + w.Short
	}
	return text
}

// script is a file that PHP could run, by its path in the release.
type script struct {
	path string
	size int64
}

// scripts lists what PHP could run in a release. Links are not followed: what they lead to outlives the release.
func scripts(dir string) ([]script, error) {
	var all []script
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !slices.Contains(suffixes, path.Ext(name)) || strings.Contains(name, "\n") {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if len(all) == mostScripts {
			return fs.SkipAll
		}
		all = append(all, script{name, info.Size()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list scripts of %s: %w", dir, err)
	}
	return all, nil
}

// Warm has every pool compile the release in dir, whose last element is the release's id, one pool after the other, and says on
// the way how far it is. A release that cannot be warm, because it does not fit or opcache is off, is no error: its Warmth says
// why. Errors are those of the routes, joined, and of listing dir. With ModeOff it does nothing.
func (o *Opcache) Warm(ctx context.Context, dir string, say func(string)) ([]Warmth, error) {
	if o.options.Mode == ModeOff || len(o.options.URLs) == 0 {
		return nil, nil
	}
	all, err := scripts(dir)
	if err != nil {
		return nil, err
	}
	var out []Warmth
	var errs []error
	for _, address := range o.options.URLs {
		w := warming{o: o, url: address, release: path.Base(dir), all: all, say: say}
		if err := w.run(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, Warmth{address, len(all), w.cached, w.broken, w.cold, w.short})
	}
	return out, errors.Join(errs...)
}

// warming is the warm-up of one pool.
type warming struct {
	o       *Opcache
	url     string
	release string
	all     []script
	say     func(string)

	last   Status
	cached int
	broken int
	unkept int
	cold   string
	short  string
}

// run compiles all files in passes; the second and later ones are for those that were broken in the one before.
func (w *warming) run(ctx context.Context) error {
	first, err := w.o.settled(ctx, w.url)
	if err != nil {
		return err
	}
	w.last = *first
	if w.cold = first.closed(); w.cold != "" {
		return nil
	}
	left, err := w.missing(ctx)
	if err != nil || w.cold != "" {
		return err
	}
	if len(left) == 0 {
		w.short = w.last.outOfStrings() // it was compiled before: what found no place then has none now
		return nil
	}
	if w.cold = w.o.sizes.lacks(w.last, left); w.cold != "" {
		return nil
	}
	w.short = w.o.sizes.shortage(w.last, left)
	most := cmp.Or(w.o.options.Warming, warmTime)
	limit, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for range passes {
		again, err := w.pass(limit, left)
		switch {
		case limit.Err() != nil && ctx.Err() == nil:
			w.cold = fmt.Sprintf("only %d of %d files were compiled in %v", w.cached, len(w.all), most)
			return nil
		case err != nil || w.cold != "":
			return err
		}
		if w.broken = len(again); len(again) == 0 || len(again) == len(left) {
			break
		}
		left = again
	}
	if w.unkept > 0 {
		w.cold = fmt.Sprintf("opcache does not keep %d of %d files: look at opcache.file_update_protection, max_file_size and blacklist_filename",
			w.unkept, len(w.all))
		return nil
	}
	w.o.sizes.learn(w.url, *first, w.last, w.all)
	return nil
}

// pass has a list compiled once, and returns what PHP could not compile.
func (w *warming) pass(ctx context.Context, list []script) (again []script, err error) {
	for len(list) > 0 {
		batch := list[:min(batchFiles, len(list))]
		began := time.Now()
		got, err := w.batch(ctx, batch)
		if err != nil || w.cold != "" {
			return nil, err
		}
		for _, i := range got.Broken {
			if i >= 0 && i < got.Done {
				again = append(again, batch[i])
			}
		}
		w.unkept += len(got.Unkept)
		w.cached += got.Done - len(got.Broken) - len(got.Unkept)
		list = list[got.Done:]
		w.say(fmt.Sprintf("%d of %d files compiled", w.cached, len(w.all)))
		if len(list) == 0 {
			break
		}
		if w.cold = w.o.sizes.full(got.Status); w.cold != "" {
			w.cold += fmt.Sprintf(", after %d of %d files", w.cached, len(w.all))
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(time.Since(began), batchTime)):
		}
	}
	return again, nil
}

// missing is what opcache does not have yet: nothing of a release that was live a while ago.
func (w *warming) missing(ctx context.Context) (missing []script, err error) {
	for list := range slices.Chunk(w.all, listFiles) {
		got, err := w.ask(ctx, "cached", list)
		if err != nil || w.cold != "" {
			return nil, err
		}
		for _, i := range got.Missing {
			if i >= 0 && i < len(list) {
				missing = append(missing, list[i])
			}
		}
	}
	w.cached = len(w.all) - len(missing)
	return missing, nil
}

// batch has a list compiled until the time is up.
func (w *warming) batch(ctx context.Context, list []script) (*reply, error) {
	got, err := w.ask(ctx, "compile", list)
	if err == nil && w.cold == "" && (got.Done < 1 || got.Done > len(list) || len(got.Broken)+len(got.Unkept) > got.Done) {
		cause := fmt.Sprintf("the probe says that it dealt with %d of %d files", got.Done, len(list))
		return nil, &RouteError{URL: w.url, Cause: cause, Cure: cureVersion}
	}
	return got, err
}

// ask sends a list of the release's files, again where somebody resets opcache meanwhile.
func (w *warming) ask(ctx context.Context, action string, list []script) (got *reply, err error) {
	for range 3 {
		got, err = w.o.send(ctx, w.url, url.Values{
			"action": {action}, "release": {w.release}, "files": {names(list)}, "ms": {strconv.FormatInt(batchTime.Milliseconds(), 10)},
		})
		if err != nil {
			return nil, err
		}
		if w.last = got.Status; !got.waking() {
			break
		}
		if _, err := w.o.settled(ctx, w.url); err != nil {
			return nil, err
		}
	}
	switch {
	case got.closed() != "":
		w.cold = got.closed()
	case got.Folder == "":
		w.cold = fmt.Sprintf("the pool sees no release %s in %q (%s)", w.release, got.Base, cureStale)
	}
	return got, nil
}

// names is a list as the probe takes it: a path a line.
func names(list []script) string {
	paths := make([]string, len(list))
	for i, s := range list {
		paths[i] = s.path
	}
	return strings.Join(paths, "\n")
}

// closed is why nothing can be compiled into this pool's opcache; empty: it can.
func (s Status) closed() string {
	switch {
	case s.Restricted:
		return "opcache is closed to the probe (" + cureRestrict + ")"
	case !s.Enabled && s.Settings.FileCacheOnly:
		return "opcache.file_cache_only: there is no memory to compile into"
	case s.waking():
		return "opcache is being emptied, or did not start: look at php-fpm's log"
	case !s.Enabled:
		return "opcache is off (opcache.enable=1 in PHP's settings: share/php/opcache.ini)"
	}
	return ""
}

// waking says that opcache is about to be there again: while a reset waits or has just been done, nothing is kept, and a request that
// began meanwhile runs without opcache.
func (s Status) waking() bool {
	return !s.Restricted && !s.Settings.FileCacheOnly && (s.Restarting || s.Settings.Enable && !s.Enabled)
}

// settled is a pool's status when opcache is there, or is not after wakeTime either.
func (o *Opcache) settled(ctx context.Context, address string) (*Status, error) {
	late := time.After(wakeTime)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		s, err := o.askOne(ctx, address, "status")
		if err != nil || !s.waking() {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: wait for the reset of opcache: %w", address, ctx.Err())
		case <-late:
			return s, nil
		case <-time.After(pause):
		}
	}
}
