package agent

import (
	"log/slog"
	"maps"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/release"
)

// pastFile is the name, in the state directory, of what happened to the releases on this disk.
const pastFile = "prepared"

// past is what happened here to the releases on the disk, durable. Losing it costs little: before_flip runs once more, and a
// release that never worked counts among those to keep.
type past struct {
	disk *disk.Disk
	log  *slog.Logger
	of   map[release.ID]deeds
}

// deeds is what happened to one release.
type deeds struct {
	Prepared string `json:"prepared,omitempty"` // the digest of the contents that before_flip passed on
	Settled  bool   `json:"settled,omitempty"`  // it was served here and healthy
	Failed   bool   `json:"failed,omitempty"`   // it was flipped to and did not get healthy at once
}

// recall reads the past; a damaged one is forgotten.
func recall(d *disk.Disk, log *slog.Logger) *past {
	p := &past{disk: d, log: log, of: map[release.ID]deeds{}}
	if _, err := d.Load(pastFile, &p.of); err != nil {
		log.Warn("what happened to earlier releases is not known any more", "error", err)
	}
	if p.of == nil { // the file said null
		p.of = map[release.ID]deeds{}
	}
	return p
}

// note changes what is known of a release, durably; the error is the disk's.
func (p *past) note(id release.ID, change func(*deeds)) error {
	was := p.of[id]
	now := was
	change(&now)
	if now == was {
		return nil
	}
	p.of[id] = now
	if err := p.disk.Save(pastFile, p.of); err != nil {
		p.of[id] = was
		return err
	}
	return nil
}

// try notes what may as well be lost.
func (p *past) try(id release.ID, change func(*deeds)) {
	if err := p.note(id, change); err != nil {
		p.log.Warn("not noted for a later start", "release", string(id), "error", err)
	}
}

// prepared says whether before_flip passed on these very contents.
func (p *past) prepared(id release.ID, digest string) bool {
	return p.of[id].Prepared == digest && digest != ""
}

// bad lists the releases that were flipped to and never worked here.
func (p *past) bad() map[release.ID]bool {
	bad := map[release.ID]bool{}
	for id, d := range p.of {
		if d.Failed && !d.Settled {
			bad[id] = true
		}
	}
	return bad
}

// forget drops what is known of releases that are not on the disk any more.
func (p *past) forget() error {
	here, err := p.disk.Releases()
	if err != nil {
		return err
	}
	left := map[release.ID]deeds{}
	for _, r := range here {
		if d, ok := p.of[r.ID]; ok {
			left[r.ID] = d
		}
	}
	if maps.Equal(left, p.of) {
		return nil
	}
	p.of = left
	return p.disk.Save(pastFile, p.of)
}
