package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
)

// rot changes a byte of a released file as a bad disk does, and leaves everything that stat tells.
func (b *box) rot(id release.ID, p string) {
	b.r.t.Helper()
	name := filepath.Join(b.cfg.Root, string(id), p)
	info, err := os.Stat(name)
	if err != nil {
		b.r.t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		b.r.t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("~"), 0)
	if err = errors.Join(err, f.Close(), os.Chtimes(name, info.ModTime(), info.ModTime())); err != nil {
		b.r.t.Fatal(err)
	}
}

func (b *box) scrubbed(since time.Time) func() bool {
	return func() bool { return b.agent.Status().Scrub.At.After(since) }
}

func TestAnIdleMachineFindsAndMendsWhatRotted(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", "hooks: {before_flip: 'echo made > made.php'}")
		b.boot()
		first := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, b)
		r.packed(r2, first, site.with(tree{"index.php": "<?php echo 2;"}))
		r.live(r2, 15*time.Second, b)
		took := r.until("the first scrub", scrubFirst, b.scrubbed(time.Time{}))
		if s := b.agent.Status().Scrub; took < scrubFirst/4 || len(s.Damaged) != 0 || s.Files < len(site) || s.Mended {
			t.Errorf("after %v: %+v", took, s)
		}
		b.rot(r2, "lib/a.php") // is r1's as well
		before, dir := b.inode(r2, "lib/a.php"), b.inode(r2, ".")
		r.bucket.requests()
		began := time.Now()
		r.until("the next scrub", scrubEvery+time.Hour, b.scrubbed(began))
		s := b.agent.Status()
		want := []string{string(r1) + "/lib/a.php", string(r2) + "/lib/a.php"}
		if strings.Join(s.Scrub.Damaged, " ") != strings.Join(want, " ") || !s.Scrub.Mended || s.Problems["disk"] != "" {
			t.Errorf("status: %+v, problems %q", s.Scrub, s.Problems)
		}
		at, _ := first.manifest.Find("lib/a.php")
		pack := first.manifest.Sources[first.manifest.Frames[first.manifest.Entries[at].Frame].Source].Key()
		if got := r.bucket.requests()[pack]; got == 0 {
			t.Errorf("the damaged contents were not fetched from %s", pack)
		}
		if b.inode(r2, "lib/a.php") == before || b.inode(r2, ".") != dir {
			t.Error("want a new inode in the same release")
		}
		for _, id := range []release.ID{r1, r2} { // r1 is the one to go back to: fetched again as well
			r.until(string(id)+" is whole", time.Hour, func() bool {
				got, _ := os.ReadFile(filepath.Join(b.cfg.Root, string(id), "lib/a.php"))
				return string(got) == site["lib/a.php"]
			})
		}
		if got, _ := os.ReadFile(filepath.Join(b.cfg.Root, "active/made.php")); string(got) != "made\n" {
			t.Errorf("what before_flip made: %q", got)
		}
		if h := r.head(); h.Epoch != 2 {
			t.Errorf("epoch %d: nobody else should have noticed", h.Epoch)
		}
	})
}

func TestRotIsMendedInThePlainLayoutOnceS3IsBack(t *testing.T) {
	bubble(t, func(r *rig) {
		way := &ownWay{bucket: r.bucket}
		b := r.box("i-1")
		b.bucket = way
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.rot(r1, "a.php")
		way.cut.Store(true)
		b.says(`disk: 1 damaged in the live release `+string(r1)+`, the first is "a.php"`, 2*time.Hour, true)
		if s := b.agent.Status(); !s.Healthy || s.Scrub.Mended {
			t.Errorf("it serves on meanwhile: %+v", s)
		}
		b.stop() // the mark outlives it
		b.boot()
		way.cut.Store(false)
		r.until("mended", scrubFirst, func() bool { return b.agent.Status().Scrub.Mended })
		if got, _ := os.ReadFile(filepath.Join(b.cfg.Root, "active/a.php")); string(got) != string(r1)+" a.php" {
			t.Errorf("served: %q", got)
		}
		b.says("disk:", time.Minute, false)
	})
}

func TestADeployDoesNotWaitForAScrub(t *testing.T) {
	bubble(t, func(r *rig) {
		booted := time.Now()
		b := r.boot("i-1")[0]
		big := tree{"film.bin": noise(3, 40<<20)}
		p := r.packed(r1, nil, big)
		r.live(r1, 15*time.Second, b)
		time.Sleep(time.Until(booted.Add(scrubFirst/2 + 3*time.Second))) // it begins within a second, and takes five
		if s := b.agent.Status().Scrub; !s.At.IsZero() {
			t.Fatalf("over already: %+v", s)
		}
		r.packed(r2, p, big.with(tree{"index.php": "<?php echo 2;"}))
		if took := r.live(r2, 15*time.Second, b); took > 5*time.Second {
			t.Errorf("live after %v", took)
		}
		r.until("it begins again", time.Minute, b.scrubbed(time.Time{}))
	})
}

func TestWhatWasChangedAfterTheVoteIsFetchedAgainBeforeTheFlip(t *testing.T) {
	bubble(t, func(r *rig) {
		way := &gated{bucket: r.bucket}
		slow := r.box("i-2")
		slow.bucket = way
		slow.boot()
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 30*time.Second, b, slow)
		h := holding(string(r2) + "/a.php")
		way.hold = h
		r.push(r2)
		r.until("i-1 has voted", 15*time.Second, func() bool { m, _ := r.row("i-1"); return m.Vote.Release == r2 && m.Vote.Yes })
		page := filepath.Join(b.cfg.Root, string(r2), "a.php")
		if err := os.WriteFile(page, []byte("<?php evil();"), 0o644); err != nil {
			t.Fatal(err)
		}
		served := ""
		close(h.open)
		r.until(string(r2)+" is live", time.Minute, func() bool {
			if b.active() == r2 && served == "" {
				body, _ := os.ReadFile(filepath.Join(b.cfg.Root, "active", "a.php"))
				served = string(body)
			}
			m, _ := r.row("i-1")
			return m.Active.Release == r2
		})
		if served != string(r2)+" a.php" {
			t.Errorf("served %q", served)
		}
	})
}

// gated is one machine's way to the bucket, which a hold can stop.
type gated struct {
	*bucket
	hold *hold
}

func (g *gated) Open(ctx context.Context, id release.ID, o release.Object) (io.ReadCloser, error) {
	if g.hold != nil {
		if err := g.hold.gate(ctx, string(id)+"/"+o.Path); err != nil {
			return nil, err
		}
	}
	return g.bucket.Open(ctx, id, o)
}
