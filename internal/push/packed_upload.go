package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// How much is under way at once. Frames are at most 4 MiB, mostly plain and compressed at the same time, packs 16 MiB,
// and one more pack is being filled: with four workers that is about 100 MiB at worst.
const (
	builders   = 4 // at most: compressing at 300 MB/s each is faster than any uplink
	framesLead = 2 // frames that may be ready before their turn, beyond those being built
	uploaders  = 3
)

// packing builds the frames of a draft and uploads the packs that they make, in the order of the plan.
type packing struct {
	store  *store.Store
	tree   *packedTree
	draft  *release.Draft
	packer *release.Packer
	large  map[string]*release.Verifier               // of the files whose frames are coming
	put    func(context.Context, *release.Pack) error // away: upload, but in a trial
	id     release.ID
	before release.ID

	plain, stored, sent atomic.Int64 // bytes: of built frames before and after, of packs on their way
	size                atomic.Int64 // of the next packs
	once                sync.Once
	measured            chan struct{} // closed when the first pack is there
	standing            func() (map[string]standingPack, error)
	anew                bool // packs are written whatever is there

	mu      sync.Mutex
	renewed []release.Sum // packs that were there, too old to rely on, and were written again
	last    time.Time     // when the last of them was
}

// frame is one of the plan on its way from a builder to the packer.
type frame struct {
	index  int
	stored chan []byte // one, when it is built
	plain  []byte      // of a large file's part, whose sum is of the whole file
}

func newPacking(p *parcel, size int64) *packing {
	packing := &packing{
		store: p.site.store, tree: p.tree, draft: p.draft, packer: p.draft.Packer(size), id: p.id, before: p.before,
		large: map[string]*release.Verifier{}, standing: p.standing, anew: p.anew, measured: make(chan struct{}),
	}
	packing.put = packing.upload
	packing.size.Store(size)
	return packing
}

// packTime is how long the upload of a pack should take: so much is lost when a connection breaks. It is measured at each
// pack. The first is a small one that goes alone.
const packTime = 5 * time.Second

// resize chooses the size of the next packs by how long one took.
func (p *packing) resize(size int64, took time.Duration) {
	next := float64(size) * float64(packTime) / float64(max(took, time.Millisecond))
	p.size.Store(int64(min(max(next, release.MinPackSize), release.PackSize)))
	p.once.Do(func() { close(p.measured) })
}

// counts is how far the upload is, as if frames went out as they were before they were compressed.
func (p *packing) counts() store.Counts {
	return store.Counts{Sent: int64(float64(p.sent.Load()) * float64(p.plain.Load()) / float64(max(p.stored.Load(), 1)))}
}

// run builds all frames, and puts away the packs that they fill. The rest goes into the delta, if it may and can; else it is a
// pack, too.
func (p *packing) run(ctx context.Context, inline bool) (inlined bool, err error) {
	g, ctx := errgroup.WithContext(ctx)
	workers := min(runtime.GOMAXPROCS(0), builders)
	work, inOrder := make(chan *frame), make(chan *frame, workers+framesLead)
	g.Go(func() error {
		defer close(work)
		defer close(inOrder)
		torn := p.torn()
		for i := range p.draft.Frames {
			if p.draft.Adopted(i) && !torn[p.draft.Frames[i].Parts[0].Path] {
				continue
			}
			f := &frame{index: i, stored: make(chan []byte, 1)}
			for _, to := range []chan *frame{inOrder, work} {
				select {
				case to <- f:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error { return p.build(work) })
	}
	g.Go(func() error {
		uploads, uctx := errgroup.WithContext(ctx)
		uploads.SetLimit(uploaders)
		full := func(pack *release.Pack) { uploads.Go(func() error { return p.put(uctx, pack) }) }
		err := p.pack(uctx, inOrder, full)
		if err == nil {
			if inlined = inline && p.packer.Inline(p.id, p.before); !inlined {
				if pack := p.packer.Flush(); pack != nil {
					full(pack)
				}
			}
		}
		if failed := uploads.Wait(); failed != nil {
			return failed
		}
		return err
	})
	err = g.Wait()
	return inlined, err
}

// torn are the large files of which some frames were adopted: their sum takes all of them.
func (p *packing) torn() map[string]bool {
	torn := map[string]bool{}
	for i, f := range p.draft.Frames {
		if part := f.Parts[0]; part.Length < part.Size && !p.draft.Adopted(i) {
			torn[part.Path] = true
		}
	}
	return torn
}

// build turns contents into frames until there is no more work.
func (p *packing) build(work <-chan *frame) error {
	files := opener{root: p.tree.root}
	defer files.Close()
	var buffer []byte
	for f := range work {
		plan := &p.draft.Frames[f.index]
		plain := slices.Grow(buffer[:0], int(plan.Length))[:plan.Length]
		rest := plain
		for _, part := range plan.Parts {
			if err := p.readPart(&files, part, rest[:part.Length]); err != nil {
				return err
			}
			rest = rest[part.Length:]
		}
		if p.draft.Adopted(f.index) {
			f.plain, buffer = plain, nil
			f.stored <- nil
			continue
		}
		stored, err := plan.Build(nil, plain)
		var which *release.Error
		if errors.As(err, &which) {
			return changed(which.Value)
		}
		if err != nil {
			return err
		}
		p.plain.Add(plan.Length)
		p.stored.Add(int64(len(stored)))
		if part := plan.Parts[0]; part.Length < part.Size {
			f.plain, buffer = plain, nil
		} else {
			buffer = plain
		}
		f.stored <- stored
	}
	return nil
}

// readPart reads what a frame holds of a file. A part of a large file has no sum of its own, and its pack is uploaded before all
// of the file was seen: so that what a pack says of itself is true, the file must look as it did when it was hashed.
func (p *packing) readPart(files *opener, part release.Part, into []byte) error {
	in, err := files.open(part.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = in.ReadAt(into, part.From)
	if errors.Is(err, io.EOF) {
		return changed(part.Path)
	}
	if err != nil {
		return fmt.Errorf("read %q: %w", part.Path, err)
	}
	if was := p.tree.large[part.Path]; was != nil {
		info, err := in.Stat()
		if err != nil {
			return fmt.Errorf("look at %q: %w", part.Path, err)
		}
		key, _ := keyOf(info)
		before, _ := keyOf(was)
		if key != before || !info.ModTime().Equal(was.ModTime()) || info.Size() != was.Size() {
			return changed(part.Path)
		}
	}
	return nil
}

// pack puts frames into packs in their order, and hands each pack on that is full.
func (p *packing) pack(ctx context.Context, inOrder <-chan *frame, full func(*release.Pack)) error {
	for f := range inOrder {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var stored []byte
		select {
		case stored = <-f.stored:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := p.verify(f); err != nil {
			return err
		}
		if stored == nil {
			continue
		}
		p.packer.Resize(p.size.Load())
		packs, err := p.packer.Put(f.index, stored)
		if err != nil {
			return err
		}
		for _, pack := range packs {
			full(pack)
			select {
			case <-p.measured:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return ctx.Err() // there may be frames that never came
}

// verify hashes a large file along, whose parts come one after another.
func (p *packing) verify(f *frame) error {
	if f.plain == nil {
		return nil
	}
	part := p.draft.Frames[f.index].Parts[0]
	v := p.large[part.Path]
	if v == nil {
		v = (&release.Entry{Path: part.Path, Size: part.Size, Sum: part.Sum}).Verifier()
		p.large[part.Path] = v
	}
	v.Write(f.plain)
	f.plain = nil
	if part.From+part.Length < part.Size {
		return nil
	}
	delete(p.large, part.Path)
	if v.Close() != nil {
		return changed(part.Path)
	}
	return nil
}

// upload writes a pack, unless it is there.
func (p *packing) upload(ctx context.Context, pack *release.Pack) error {
	packs, err := p.standing()
	if err != nil {
		return err
	}
	src, size := release.Source{Pack: pack.Sum}, int64(len(pack.Data))
	o, there := packs[src.Key()]
	if there && o.lasts && o.Size == size && !p.anew {
		p.once.Do(func() { close(p.measured) })
		p.sent.Add(size)
		return nil
	}
	if err := failpoint.Hit("PU1"); err != nil {
		return err
	}
	ctx = store.WithProgress(ctx, func(n int64) { p.sent.Add(n) })
	began := time.Now()
	put := p.store.PutPack
	if p.anew {
		put = p.store.ReplacePack
	}
	err = put(ctx, pack.Sum, bytes.NewReader(pack.Data), size)
	p.resize(size, time.Since(began))
	failpoint.Landed("PU1")
	if err == nil && there {
		p.mu.Lock()
		p.renewed, p.last = append(p.renewed, pack.Sum), time.Now()
		p.mu.Unlock()
	}
	return err
}

// recheck makes sure that the packs that were written again stay: a clean-up that had looked at them before may still have
// deleted them for a moment afterwards.
func (p *packing) recheck(ctx context.Context) error {
	if len(p.renewed) == 0 {
		return nil
	}
	if err := waitUntil(ctx, p.last.Add(store.DeleteTime)); err != nil {
		return err
	}
	for _, sum := range p.renewed {
		if _, err := p.store.HasPack(ctx, sum); err != nil {
			return advise(err, "push again: what was uploaded is not uploaded again")
		}
	}
	return nil
}
