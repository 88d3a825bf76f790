package php

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
)

// What a release takes before it is known: WordPress 6.1 took 2.0 bytes a byte of source and 1.02 keys a file in PHP 8.2;
// small files take more, so this is on the high side.
const (
	usualMemory = 2.2 // bytes a byte of source
	fileMemory  = 4096
	usualKeys   = 1.1 // a file
)

// reserve is what stays free for what live requests compile meanwhile: a part of the whole, and keys likewise.
const reserve = 32

// size is what scripts take, by their source.
type size struct{ memory, keys, strings float64 }

// sizes are what was learned of pools, by their routes.
type sizes struct {
	mu sync.Mutex
	of map[string]size
}

// need is what a release takes in a pool: bytes, keys, and bytes of interned strings.
type need struct{ memory, keys, strings int64 }

func (z *sizes) need(address string, all []script) need {
	z.mu.Lock()
	defer z.mu.Unlock()
	known, ok := z.of[address]
	bytes := source(all)
	if !ok {
		return need{int64(usualMemory*bytes) + fileMemory*int64(len(all)), int64(usualKeys*float64(len(all))) + 1, 0}
	}
	return need{int64(known.memory * bytes), int64(known.keys*float64(len(all))) + 1, int64(known.strings * bytes)}
}

// source is the size of scripts, at least one byte.
func source(all []script) float64 {
	total := int64(1)
	for _, s := range all {
		total += s.size
	}
	return float64(total)
}

// learn takes what a pool's numbers were before and after all scripts of a release were compiled. Where most of them were
// cached already, as of a release that was live before, it says nothing.
func (z *sizes) learn(address string, before, after Status, all []script) {
	if after.Scripts-before.Scripts < len(all)*9/10 || len(all) == 0 || after.LastRestart != before.LastRestart {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	bytes := source(all)
	learned := size{
		memory:  float64(after.UsedMemory-before.UsedMemory) / bytes,
		keys:    float64(after.Keys-before.Keys) / float64(len(all)),
		strings: float64(after.UsedStrings-before.UsedStrings) / bytes,
	}
	if after.outOfStrings() != "" { // what found no place is not counted
		learned.strings = max(learned.strings, z.of[address].strings)
	}
	z.of[address] = learned
}

// lacks is why scripts do not fit into a pool; empty: they do.
func (z *sizes) lacks(s Status, all []script) string {
	n := z.need(s.URL, all)
	var why []string
	if free := s.FreeMemory - s.capacity()/reserve; n.memory > free {
		why = append(why, fmt.Sprintf("%s of %s free memory (opcache.memory_consumption)", megabytes(n.memory), megabytes(max(free, 0))))
	}
	if free := int64(s.MaxKeys - s.Keys - s.MaxKeys/reserve); n.keys > free {
		why = append(why, fmt.Sprintf("%d of %d free keys (opcache.max_accelerated_files)", n.keys, max(free, 0)))
	}
	if len(why) > 0 {
		return "it does not fit: it needs " + strings.Join(why, " and ")
	}
	return ""
}

// shortage is why interned strings run short when scripts are compiled, as far as that is known; empty: they do not. It keeps no script from
// being compiled.
func (z *sizes) shortage(s Status, all []script) string {
	if n := z.need(s.URL, all); n.strings > s.FreeStrings {
		return fmt.Sprintf("it needs %s of %s free interned strings (opcache.interned_strings_buffer)", megabytes(n.strings), megabytes(s.FreeStrings))
	}
	return s.outOfStrings()
}

// outOfStrings says that the interned strings' buffer is as good as full; empty: it is not, or there is none.
func (s Status) outOfStrings() string {
	if s.FreeStrings*reserve >= s.UsedStrings+s.FreeStrings {
		return ""
	}
	return fmt.Sprintf("only %s of %s for interned strings are free (opcache.interned_strings_buffer)", megabytes(s.FreeStrings), megabytes(s.UsedStrings+s.FreeStrings))
}

// full is why nothing more should be compiled; empty: go on.
func (z *sizes) full(s Status) string {
	if s.Full || s.FreeMemory < s.capacity()/reserve || s.Keys > s.MaxKeys-s.MaxKeys/reserve {
		return fmt.Sprintf("it does not fit: %s memory and %d keys are free", megabytes(s.FreeMemory), s.MaxKeys-s.Keys)
	}
	return ""
}

func (s Status) capacity() int64 { return s.UsedMemory + s.FreeMemory + s.WastedMemory }

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// Tight says which pools could not hold one more release as large as the one in dir, besides all they hold, and why, a line
// each; nothing when there is room. A pool that a reset would not help, since its opcache is off or closed, is not
// among them.
func (o *Opcache) Tight(ctx context.Context, dir string) (why []string, err error) {
	pools, err := o.tight(ctx, dir)
	for _, t := range pools {
		why = append(why, t.url+": "+t.why)
	}
	return why, err
}

type tightPool struct{ url, why string }

func (o *Opcache) tight(ctx context.Context, dir string) ([]tightPool, error) {
	if o.options.Mode == ModeOff || len(o.options.URLs) == 0 {
		return nil, nil
	}
	all, err := scripts(dir)
	if err != nil {
		return nil, err
	}
	var out []tightPool
	var errs []error
	for _, address := range o.options.URLs {
		pool, err := o.settled(ctx, address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s := *pool
		if s.closed() != "" {
			continue
		}
		why := o.sizes.lacks(s, all)
		// Nothing is cold for want of strings: where the buffer would not hold two releases, emptying it would only cost.
		if n := o.sizes.need(s.URL, all); why == "" && n.strings > s.FreeStrings && 2*n.strings <= s.UsedStrings+s.FreeStrings {
			why = "one more release does not fit: " + o.sizes.shortage(s, all)
		}
		if s.Full {
			why = "it is full"
		}
		if why != "" {
			out = append(out, tightPool{s.URL, why})
		}
	}
	return out, errors.Join(errs...)
}

// MakeRoom empties the pools that [Opcache.Tight] names and compiles the live release, in dir, into them again. Live requests are slow
// meanwhile: one instance at a time should do it, and not in a rollout. A reset waits until nobody is in the cache.
// Results and errors are as of [Opcache.Warm]; a pool that could not be emptied is an error, and keeps no other from it.
func (o *Opcache) MakeRoom(ctx context.Context, dir string, say func(string)) ([]Warmth, error) {
	pools, err := o.tight(ctx, dir)
	if len(pools) == 0 {
		return nil, err
	}
	some := *o
	some.options.URLs = nil
	for _, t := range pools {
		some.options.URLs = append(some.options.URLs, t.url)
	}
	say("making room for " + path.Base(dir))
	emptied, rerr := some.Reset(ctx)
	some.options.URLs = nil
	for _, s := range emptied {
		some.options.URLs = append(some.options.URLs, s.URL)
	}
	made, werr := some.Warm(ctx, dir, say)
	return made, errors.Join(err, rerr, werr)
}
