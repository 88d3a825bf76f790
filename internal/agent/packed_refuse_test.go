package agent

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// light is site without what takes long to write, and larger that with a small and a large change.
var light = site.with(tree{"big.bin": "", "big.txt": ""})

var larger = light.with(tree{"index.php": "<?php echo 2;", "large.bin": noise(7, 9<<20)})

// refused pushes what must not be deployed onto r1: damage alters the bucket, and may alter what the pointer says of the release. It
// returns what the fleet was told.
func refused(t *testing.T, says string, damage func(r *rig, p *packed)) (reason string) {
	t.Helper()
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, light)
		r.live(r1, 15*time.Second, b)
		bad := packing{parent: first, put: r.bucket.put}.pack(t, r2, larger)
		damage(r, bad)
		r.point(r2, bad.manifest.Files(), bad.lines()...)
		r.until("abort", time.Minute, func() bool { return r.head().State == fleet.Abort && r.head().Release == r2 })
		h := r.head()
		reason = h.Reason
		if !strings.Contains(h.Reason, says) || h.Hold != h.Sequence {
			t.Errorf("aborted with reason %q (want %q), hold %d of %d", h.Reason, says, h.Hold, h.Sequence)
		}
		if s := b.agent.Status(); b.active() != r1 || !s.Healthy || slices.Contains(b.names(), string(r2)) {
			t.Errorf("serves %s, healthy %v, root %q", b.active(), s.Healthy, b.names())
		}
		b.holds(r1, light)
		r.packed(r3, first, light.with(tree{"index.php": "<?php echo 3;"}))
		r.live(r3, time.Minute, b)
	})
	return reason
}

// flip turns one bit of an object.
func (b *bucket) flip(key string, at int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bodies[key] = flipped(b.bodies[key], at)
}

func flipped(object string, at int) string {
	body := []byte(object)
	body[(at+len(body))%len(body)] ^= 4
	return string(body)
}

// lastPack is the pack that only this release has.
func (p *packed) lastPack() string {
	at, _ := p.manifest.Find("large.bin")
	return p.manifest.Sources[p.manifest.Frames[p.manifest.Entries[at].Frame].Source].Key()
}

// inPacks packs larger into packs of a frame each, and returns their keys: what the small file is in, and three pieces of the large one, two
// of them of one size.
func (r *rig) inPacks(p *packed) (keys []string) {
	*p = *packing{parent: p.parent, size: release.MaxFrame, put: r.bucket.put}.pack(r.t, p.id, larger)
	for _, src := range p.manifest.Sources {
		if !slices.Contains(p.parent.manifest.Sources, src) {
			keys = append(keys, src.Key())
		}
	}
	if len(keys) != 4 {
		r.t.Fatalf("packs %q, want 4", keys)
	}
	return keys
}

func TestDamagedPackIsRefused(t *testing.T) {
	type bodies = map[string]string
	for name, c := range map[string]struct {
		says   string
		damage func(b bodies, keys []string)
	}{
		"flipped bit":           {"digest is ", func(b bodies, k []string) { b[k[1]] = flipped(b[k[1]], 2<<20) }},
		"truncated":             {"contents are damaged", func(b bodies, k []string) { b[k[2]] = b[k[2]][:1<<20] }},
		"missing":               {"not found", func(b bodies, k []string) { delete(b, k[1]) }},
		"swapped":               {"digest is ", func(b bodies, k []string) { b[k[1]], b[k[2]] = b[k[2]], b[k[1]] }},
		"swapped for a smaller": {"contents are damaged", func(b bodies, k []string) { b[k[1]], b[k[3]] = b[k[3]], b[k[1]] }},
		"swapped for a larger":  {"digest is ", func(b bodies, k []string) { b[k[0]] = b[k[1]] }},
		"longer in front":       {"digest is ", func(b bodies, k []string) { b[k[0]] = "x" + b[k[0]] }},
		"longer in the middle":  {"digest is ", func(b bodies, k []string) { b[k[2]] = b[k[2]][:1<<20] + "x" + b[k[2]][1<<20:] }},
	} {
		t.Run(name, func(t *testing.T) {
			var keys []string
			reason := refused(t, c.says, func(r *rig, p *packed) {
				keys = r.inPacks(p)
				r.bucket.mu.Lock()
				defer r.bucket.mu.Unlock()
				c.damage(r.bucket.bodies, keys)
			})
			if !slices.ContainsFunc(keys, func(k string) bool { return strings.Contains(reason, k) }) {
				t.Errorf("reason %q names none of %q", reason, keys)
			}
		})
	}
}

// What lies behind a pack's frames no manifest speaks of, and no agent asks for: a pack that was appended to is as good as before.
func TestWhatIsAppendedToAPackIsNeverRead(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, light)
		r.live(r1, 15*time.Second, b)
		p := &packed{id: r2, parent: first}
		for _, k := range r.inPacks(p) {
			r.bucket.put(k, []byte(r.bucket.bodies[k]+r.bucket.bodies[k]))
		}
		r.point(r2, p.manifest.Files(), p.lines()...)
		r.live(r2, time.Minute, b)
		b.holds(r2, larger)
	})
}

func TestDamagedDeltaIsRefused(t *testing.T) {
	for name, damage := range map[string]func(r *rig, p *packed){
		"first bit":  func(r *rig, p *packed) { r.bucket.flip(deltaKey(r2, r1), 0) },
		"difference": func(r *rig, p *packed) { r.bucket.flip(deltaKey(r2, r1), -40) },
		"truncated":  func(r *rig, p *packed) { r.bucket.put(deltaKey(r2, r1), p.delta[:len(p.delta)-1]) },
		"longer":     func(r *rig, p *packed) { r.bucket.put(deltaKey(r2, r1), append(slices.Clone(p.delta), 0)) },
		"swapped":    func(r *rig, p *packed) { r.bucket.put(deltaKey(r2, r1), p.object) },
	} {
		t.Run(name, func(t *testing.T) { refused(t, deltaKey(r2, r1)+": contents are damaged", damage) })
	}
}

func TestDamagedManifestIsRefused(t *testing.T) {
	const damaged = "m/" + string(r2) + ": contents are damaged"
	for name, c := range map[string]struct {
		says   string
		damage func(r *rig, p *packed)
	}{
		"flipped bit": {damaged, func(r *rig, p *packed) { r.bucket.flip("m/"+string(r2), 100) }},
		"truncated":   {damaged, func(r *rig, p *packed) { r.bucket.put("m/"+string(r2), p.object[:100]) }},
		"longer":      {damaged, func(r *rig, p *packed) { r.bucket.put("m/"+string(r2), append(slices.Clone(p.object), 0)) }},
		"of another":  {damaged, func(r *rig, p *packed) { r.bucket.put("m/"+string(r2), p.parent.object) }},
		"missing":     {"m/" + string(r2) + ": not found", func(r *rig, p *packed) { delete(r.bucket.bodies, "m/"+string(r2)) }},
		"no manifest": {"release " + string(r2) + ": parse manifest: zstd frame", func(r *rig, p *packed) {
			p.object = []byte("of these very bytes, and signed")
			r.bucket.put("m/"+string(r2), p.object)
		}},
		"of another, and pointed to": {`manifest "` + string(r2) + `": has 6 files where the pointer says`, func(r *rig, p *packed) {
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

// forged is what a writer of bad manifests would publish: a good one with other bytes in the place of some. Nothing here writes such a one.
func (r *rig) forged(good *packed, these, those string) {
	r.t.Helper()
	payload, err := good.manifest.Payload()
	if err != nil || strings.Count(string(payload), these) != 1 {
		r.t.Fatalf("%q is not there once: %v", these, err)
	}
	good.object = release.BuildFrame(nil, []byte(strings.Replace(string(payload), these, those, 1)))
	r.bucket.put("m/"+string(good.id), good.object)
}

func TestHostileManifestsAreRefused(t *testing.T) {
	tr := tree{"innocent1": "x", "innocent2": "x", "innocent2-x": "x", "link": "-> somewhere"}
	for i := range 50 {
		tr[fmt.Sprintf("z%02d", i)] = "x" // so that it compresses
	}
	for name, c := range map[string]struct{ these, those, says string }{
		"up and out":                     {"innocent1", "../../x/p", `path "../../x/p": has a part ".."`},
		"out behind a name":              {"innocent1", "a/../../x", `path "a/../../x": has a part ".."`},
		"absolute":                       {"innocent1", "/etc/cron", `path "/etc/cron": must not be absolute`},
		"parts of nothing":               {"innocent1", ".//./././", `path ".//./././": has a part "."`},
		"twice":                          {"\x08\x012", "\x09\x00", `path "innocent1": must come before "innocent1", and once`},
		"a file that is a directory":     {"\x09\x02-x", "\x09\x02/x", `path "innocent2/x": lies in "innocent2", which is not a directory`},
		"in a directory that is not one": {"\x00\x04link", "\x00\x04li/k", `path "li/k": lies in "li", which is not a directory`},
		"a link up and out":              {"somewhere", "../../etc", `link "link" to "../../etc": target leaves the release`},
		"a link out behind a name":       {"somewhere", "a/../../b", `link "link" to "a/../../b": target has ".." after a name`},
		"an absolute link":               {"somewhere", "/etc/cron", `link "link" to "/etc/cron": target must be relative`},
		"a link in a circle":             {"\x09somewhere", "\x04link", `link "link": leads through more than 8 links`},
	} {
		t.Run(name, func(t *testing.T) {
			reason := refused(t, c.says, func(r *rig, p *packed) {
				*p = *packing{put: r.bucket.put}.pack(t, r2, tr)
				r.forged(p, c.these, c.those)
			})
			if !strings.Contains(reason, "release "+string(r2)) {
				t.Errorf("reason %q names no object", reason)
			}
		})
	}
}

// What unpacks to more than it says is stopped at what it says, wherever it lies.
func TestBombsAreRefused(t *testing.T) {
	const says = 1_000_000
	lies := release.BuildFrame(nil, make([]byte, 32<<20))
	at := strings.Index(string(lies), string(binary.LittleEndian.AppendUint32(nil, 32<<20)))
	if at < 0 {
		t.Fatal("the length is not where it should be")
	}
	binary.LittleEndian.PutUint32(lies[at:], says)
	tr := light.with(tree{"bomb": strings.Repeat("x", says)})
	for name, size := range map[string]int64{"in a pack": release.PackSize, "in the delta": 0} {
		t.Run(name, func(t *testing.T) {
			var key string
			reason := refused(t, "zstd frame: ", func(r *rig, p *packed) {
				*p = *packing{parent: p.parent, size: size, put: r.bucket.put, stored: func([]byte) []byte { return lies }}.pack(t, r2, tr)
				key = p.manifest.Sources[len(p.manifest.Sources)-1].Key()
			})
			if !strings.Contains(reason, key) {
				t.Errorf("reason %q does not name %s", reason, key)
			}
		})
	}
}
