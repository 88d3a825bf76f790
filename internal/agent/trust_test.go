package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// F47 to F49: what is refused raises the alarm, on an instance that serves and on one that was born a moment ago, serves what the
// fleet serves, and lowers it when the good pointer is back.
func TestRefusedPointersRaiseTheAlarmOnOldAndBrandNewInstances(t *testing.T) {
	signer := func() *release.Signer {
		private, _, err := release.NewKey("promo-ci")
		if err != nil {
			t.Fatal(err)
		}
		s, err := release.NewSigner(private)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ours, evil := signer(), signer()
	bubble(t, func(r *rig) {
		first := packing{put: r.bucket.put}.pack(t, r1, tree{"index.php": "1"})
		other := packing{put: r.bucket.put}.pack(t, r2, tree{"index.php": "2"})
		pointer := func(p *packed, sequence int64) release.Pointer {
			return release.Pointer{
				Release: p.id, Sequence: sequence, Files: p.manifest.Files(), Scope: "bucket/promo",
				Manifest: &release.Content{SHA256: sum256(p.object), Length: int64(len(p.object))},
			}
		}
		signed := func(s *release.Signer, p release.Pointer) []byte {
			text, err := s.Sign(p)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		start := func(id string) *box {
			b := r.box(id, fmt.Sprintf("verify_keys: [%q]", ours.Public()))
			b.metrics = NewMetrics(func() *Agent { return b.agent })
			b.boot()
			return b
		}
		alarmed := func(b *box) bool { return scrape(t, b.metrics)[`problem{part="pointer"}`] == 1 }
		old := start("old")
		now := time.Now().Unix()
		good := signed(ours, pointer(first, now))
		r.bucket.point(good)
		r.live(r1, 15*time.Second, old)
		staging := pointer(other, now+1)
		staging.Scope = "bucket/promo-staging"
		for i, c := range []struct {
			text []byte
			says string
		}{
			{pointer(other, now+1).Text(), "is not signed"},                    // F47
			{signed(evil, pointer(other, now+1)), "is signed by"},              // F47
			{signed(ours, pointer(other, now-100)), "is older than"},           // F48
			{signed(ours, pointer(other, now)), "other contents"},              // F49
			{signed(ours, pointer(other, now+30*3600)), "ahead of"},            // F49
			{signed(ours, staging), `is of scope "bucket/promo-staging", not`}, // F49
		} {
			r.bucket.point(c.text)
			b := start(fmt.Sprint("new-", i))
			for _, b := range []*box{old, b} {
				b.says(c.says, 20*time.Second, true)
				b.says("serving "+string(r1), 20*time.Second, true)
				s := b.agent.Status()
				if row, _ := r.row(b.id); !alarmed(b) || b.active() != r1 || !s.Healthy || !strings.Contains(row.Error, c.says) {
					t.Errorf("%s, where the pointer %s: alarm %v, on %s, healthy %v, row %q", b.id, c.says, alarmed(b), b.active(), s.Healthy, row.Error)
				}
			}
			b.stop()
			r.bucket.point(good)
			r.until("no alarm", 20*time.Second, func() bool { return !alarmed(old) })
		}
		if h := r.head(); h.Epoch != 1 || h.State != fleet.Done {
			t.Errorf("the fleet moved: %+v", h)
		}
	})
}
