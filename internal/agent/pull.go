package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
)

// connections is the number of ranges read at a time: two for each processor, four to eight. Two processors unpack some 50 MB/s, which four
// connections bring at 13 MB/s each; more only have more in their buffers, which is lost when the agent is killed. Each has one frame in
// memory as it is stored, and each processor one decompressed, of at most [release.MaxFrame]: 64 MiB on 8 processors, whatever the release,
// and a quarter of that where there are no large files, as small ones share frames of 1 MiB.
func connections() int { return min(max(4, 2*runtime.GOMAXPROCS(0)), 8) }

// pulling is the way of a packed release's missing contents from S3 to the disk.
type pulling struct {
	blueprint
	bucket Packed
	stage  *disk.Stage
	fetch  *release.Fetch
	ranges []release.Range
	next   atomic.Int64 // index of the range that nobody reads yet
	done   atomic.Int64 // bytes of frames
	total  int64
	plain  chan []byte // memory for decompressed frames, one for each processor
	say    func(string)
}

// pull fetches what the stage needs, several ranges at a time. Frames are decompressed and written by who read them, while the
// other connections, and the kernel for this one, go on receiving.
func (m *machine) pull(ctx context.Context, s *disk.Stage, plan blueprint, progress func(string)) error {
	p := &pulling{blueprint: plan, bucket: m.bucket, stage: s, fetch: plan.manifest.Fetch(s.Need()), say: progress}
	p.plain = make(chan []byte, min(connections(), runtime.GOMAXPROCS(0)))
	for range cap(p.plain) {
		p.plain <- nil
	}
	for _, r := range p.fetch.Ranges {
		for _, n := range r.Frames {
			p.total += p.manifest.Frames[n].Stored
		}
		if !p.inHand(r) {
			p.ranges = append(p.ranges, r)
			continue
		}
		for _, n := range r.Frames { // each on its own: no request is saved by leaving them together
			f := p.manifest.Frames[n]
			p.ranges = append(p.ranges, release.Range{Source: r.Source, Offset: f.Offset, Length: f.Stored, Frames: []int{n}})
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for range min(atOnce(connections()), len(p.ranges)) {
		g.Go(func() error { return p.work(ctx) })
	}
	return g.Wait()
}

// megabytes rounds up: only nothing is 0.
func megabytes(n int64) int64 { return (n + 999_999) / 1_000_000 }

// inHand says whether a range lies in the delta that was fetched.
func (p *pulling) inHand(r release.Range) bool {
	src := p.manifest.Sources[r.Source]
	return p.delta != nil && src.Release == p.source.Release && src.Parent == p.source.Parent
}

// hand is one worker's memory and its way to the disk.
type hand struct {
	*disk.Writer
	stored []byte
}

// sized is memory for n bytes, buf's where that is large enough. There are two sizes, so that what grows leaves little behind.
func sized(buf []byte, n int64) []byte {
	if int64(cap(buf)) >= n {
		return buf[:n]
	}
	size := int64(1 << 20)
	if n > size {
		size = release.MaxFrame
	}
	return make([]byte, n, size)
}

// work reads ranges until there are no more.
func (p *pulling) work(ctx context.Context) (err error) {
	h := &hand{Writer: p.stage.Writer()}
	defer func() { err = errors.Join(err, h.Close()) }()
	for ctx.Err() == nil {
		n := int(p.next.Add(1) - 1)
		if n >= len(p.ranges) {
			return nil
		}
		if err := p.read(ctx, h, p.ranges[n]); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// open begins a range, without a request where the delta has it.
func (p *pulling) open(ctx context.Context, r release.Range) (io.ReadCloser, error) {
	if !p.inHand(r) {
		if err := failpoint.Hit("A7"); err != nil {
			return nil, err
		}
		return p.bucket.OpenRange(ctx, p.manifest.Sources[r.Source], r.Offset, r.Length)
	}
	stored, err := p.delta.Stored(release.Frame{Offset: r.Offset, Stored: r.Length})
	return io.NopCloser(bytes.NewReader(stored)), err
}

// read takes a range apart, frame by frame.
func (p *pulling) read(ctx context.Context, h *hand, r release.Range) error {
	src := p.manifest.Sources[r.Source]
	body, err := p.open(ctx, r)
	if err != nil {
		return err
	}
	defer body.Close()
	at := r.Offset
	for _, n := range r.Frames {
		f := p.manifest.Frames[n]
		if f.Offset < at {
			return &release.Error{What: "frame", Value: src.Key(), Rule: fmt.Sprintf("%d overlaps the one before it", n)}
		}
		if _, err := io.CopyN(io.Discard, body, f.Offset-at); err != nil {
			return fmt.Errorf("read %s: %w", src.Key(), err)
		}
		h.stored = sized(h.stored, f.Stored)
		if _, err := io.ReadFull(body, h.stored); err != nil {
			return fmt.Errorf("read %s: %w", src.Key(), err)
		}
		at = f.Offset + f.Stored
		if err := p.unpack(h, n); err != nil {
			return fmt.Errorf("unpack frame %d of %s: %w", n, src.Key(), err)
		}
		p.say(fmt.Sprintf("%d of %d MB", megabytes(p.done.Add(f.Stored)), megabytes(p.total)))
	}
	// To the very end, so that the connection serves the next range.
	if _, err := io.Copy(io.Discard, body); err != nil {
		return fmt.Errorf("read %s: %w", src.Key(), err)
	}
	return nil
}

// unpack decompresses the frame in hand and writes its files.
func (p *pulling) unpack(h *hand, n int) error {
	f := p.manifest.Frames[n]
	if f.Raw() {
		return p.write(h, n, h.stored)
	}
	memory := sized(<-p.plain, f.Length)
	defer func() { p.plain <- memory }()
	plain, err := release.DecodeFrame(memory, f, h.stored)
	if err != nil {
		return err
	}
	return p.write(h, n, plain)
}

// write brings what a frame holds to the disk, where each file is verified before it counts.
func (p *pulling) write(h *hand, n int, plain []byte) error {
	for _, i := range p.fetch.Entries(n) {
		part, from := p.manifest.Part(&p.manifest.Entries[i], n, plain)
		if err := h.Put(int(i), from, part); err != nil {
			return err
		}
	}
	return nil
}
