package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// refused pushes what must not be deployed onto r1: damage alters the bucket, and may alter what the pointer says of the release.
func refused(t *testing.T, says string, damage func(r *rig, p *packed)) {
	t.Helper()
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, b)
		bad := packing{parent: first, put: r.bucket.put}.pack(t, r2, site.with(tree{"index.php": "<?php echo 2;", "large.bin": noise(7, 9<<20)}))
		damage(r, bad)
		r.point(r2, bad.manifest.Files(), bad.lines()...)
		r.until("abort", time.Minute, func() bool { return r.head().State == fleet.Abort && r.head().Release == r2 })
		h := r.head()
		if !strings.Contains(h.Reason, says) || h.Hold != h.Sequence {
			t.Errorf("aborted with reason %q (want %q), hold %d of %d", h.Reason, says, h.Hold, h.Sequence)
		}
		if s := b.agent.Status(); b.active() != r1 || !s.Healthy || slices.Contains(b.names(), string(r2)) {
			t.Errorf("serves %s, healthy %v, root %q", b.active(), s.Healthy, b.names())
		}
		b.holds(r1, site)
		r.packed(r3, first, site.with(tree{"index.php": "<?php echo 3;"}))
		r.live(r3, time.Minute, b)
	})
}

// flip turns one bit of an object.
func (b *bucket) flip(key string, at int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body := []byte(b.bodies[key])
	body[(at+len(body))%len(body)] ^= 4
	b.bodies[key] = string(body)
}

// lastPack is the pack that only this release has.
func (p *packed) lastPack() string {
	at, _ := p.manifest.Find("large.bin")
	return p.manifest.Sources[p.manifest.Frames[p.manifest.Entries[at].Frame].Source].Key()
}

func TestFlippedBitInAPackIsRefused(t *testing.T) {
	refused(t, "digest is ", func(r *rig, p *packed) { r.bucket.flip(p.lastPack(), 5<<20) })
}

func TestTruncatedPackIsRefused(t *testing.T) {
	refused(t, "contents are damaged", func(r *rig, p *packed) {
		r.bucket.put(p.lastPack(), []byte(r.bucket.bodies[p.lastPack()][:1<<20]))
	})
}

func TestMissingPackIsRefused(t *testing.T) {
	refused(t, "not found", func(r *rig, p *packed) { delete(r.bucket.bodies, p.lastPack()) })
}

func TestDamagedDeltaIsRefused(t *testing.T) {
	for name, damage := range map[string]func(r *rig, p *packed){
		"first bit":  func(r *rig, p *packed) { r.bucket.flip(deltaKey(r2, r1), 0) },
		"difference": func(r *rig, p *packed) { r.bucket.flip(deltaKey(r2, r1), -40) },
		"truncated":  func(r *rig, p *packed) { r.bucket.put(deltaKey(r2, r1), p.delta[:len(p.delta)-1]) },
	} {
		t.Run(name, func(t *testing.T) { refused(t, "contents are damaged", damage) })
	}
}

func TestDamagedManifestIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		says   string
		damage func(r *rig, p *packed)
	}{
		"flipped bit": {"contents are damaged", func(r *rig, p *packed) { r.bucket.flip("m/"+string(r2), 100) }},
		"truncated":   {"contents are damaged", func(r *rig, p *packed) { r.bucket.put("m/"+string(r2), p.object[:100]) }},
		"of another":  {"contents are damaged", func(r *rig, p *packed) { r.bucket.put("m/"+string(r2), p.parent.object) }},
		"missing":     {"not found", func(r *rig, p *packed) { delete(r.bucket.bodies, "m/"+string(r2)) }},
		"no manifest": {"zstd frame", func(r *rig, p *packed) {
			p.object = []byte("of these very bytes, and signed")
			r.bucket.put("m/"+string(r2), p.object)
		}},
		"of another, and pointed to": {"files where the pointer says", func(r *rig, p *packed) {
			p.object = p.parent.object
			r.bucket.put("m/"+string(r2), p.object)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, c.says, func(r *rig, p *packed) {
				c.damage(r, p)
				p.delta = nil // straight to the manifest
			})
		})
	}
}

func TestMissingDeltaIsDoneWithoutWhereNothingIsInIt(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, b)
		next := site.with(tree{"index.php": "<?php echo 2;"})
		p := packing{parent: first, size: 1 << 20, put: r.bucket.put}.pack(t, r2, next)
		r.bucket.mu.Lock()
		delete(r.bucket.bodies, deltaKey(r2, r1))
		r.bucket.mu.Unlock()
		r.point(r2, p.manifest.Files(), p.lines()...)
		r.live(r2, 15*time.Second, b)
		b.holds(r2, next)
	})
}

func TestFramesThatOverlapAreRefused(t *testing.T) {
	refused(t, "overlaps", func(r *rig, p *packed) {
		at, _ := p.manifest.Find("large.bin")
		p.manifest.Frames[p.manifest.Entries[at].Frame+1].Offset--
		var err error
		if p.object, err = p.manifest.Encode(); err != nil {
			t.Fatal(err)
		}
		r.bucket.put("m/"+string(r2), p.object)
		p.delta = nil
	})
}

func TestDeltaThatCannotBeAppliedIsReplacedByTheManifest(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, b)
		other := packing{put: r.bucket.put}.pack(t, r3, site.with(tree{"index.php": "<?php echo 3;", "new.bin": noise(9, 9<<20)}))
		next := site.with(tree{"index.php": "<?php echo 2;"})
		p := packing{parent: other, put: r.bucket.put}.pack(t, r2, next)
		r.bucket.put(deltaKey(r2, r1), p.delta)
		p.parent = first // so the pointer says
		r.bucket.requests()
		r.point(r2, p.manifest.Files(), p.lines()...)
		r.live(r2, 15*time.Second, b)
		b.holds(r2, next)
		if got := r.bucket.requests(); got[deltaKey(r2, r1)] != 1 || got["m/"+string(r2)] != 1 {
			t.Errorf("asked for %v, want the delta and then the manifest", got)
		}
	})
}

func TestHostilePathsAreRefused(t *testing.T) {
	// Nothing here writes such a manifest: a good one gets other bytes in the place of a name.
	for _, evil := range []string{"../../x/p", "a/../../x", "/etc/cron", ".//./././"} {
		t.Run(evil, func(t *testing.T) {
			refused(t, "path", func(r *rig, p *packed) {
				tr := tree{"innocent1": "x"}
				for i := range 50 {
					tr[fmt.Sprintf("z%02d", i)] = "x" // so that it compresses
				}
				good := packing{put: r.bucket.put}.pack(t, r2, tr)
				payload, err := good.manifest.Payload()
				if err != nil {
					t.Fatal(err)
				}
				bad := strings.Replace(string(payload), "innocent1", evil, 1)
				good.object = release.BuildFrame(nil, []byte(bad))
				r.bucket.put("m/"+string(r2), good.object)
				*p = *good
			})
		})
	}
}
