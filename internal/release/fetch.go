package release

import (
	"cmp"
	"math"
	"slices"
)

// How frames are read, in bytes. 8 MiB is the best trade of requests and bandwidth that S3's own guidance and
// measurements give; at 30 ms and 15 MB/s for one connection a gap of 512 KiB costs what a request does.
const (
	MaxRange = 8 << 20
	maxGap   = 512 << 10
)

// Range is one ranged read of a source.
type Range struct {
	Source int // index into [Manifest.Sources]
	Offset int64
	Length int64
	Frames []int // those that are needed, by offset; what lies between them is thrown away
}

// Fetch is what has to be read for some entries.
type Fetch struct {
	Ranges []Range // by source, then by offset
	Bytes  int64   // sum of the lengths

	starts []int32 // of each frame's entries
	users  []int32
}

// Entries are the indexes of the needed entries with contents in the frame, by path.
func (f *Fetch) Entries(frame int) []int32 { return f.users[f.starts[frame]:f.starts[frame+1]] }

// Fetch plans how to read the contents of the entries with these indexes, each at most once and in ascending order:
// as few requests as the limits allow, each of whole frames. Frames are never larger than a range.
func (m *Manifest) Fetch(need []int) *Fetch {
	f := &Fetch{starts: make([]int32, len(m.Frames)+1)}
	for _, i := range need {
		for first, last := m.Span(&m.Entries[i]); first < last; first++ {
			f.starts[first+1]++
		}
	}
	var frames []int
	for i := range m.Frames {
		if f.starts[i+1] > 0 {
			frames = append(frames, i)
		}
		f.starts[i+1] += f.starts[i]
	}
	f.users = make([]int32, f.starts[len(m.Frames)])
	fill := slices.Clone(f.starts)
	for _, i := range need {
		for first, last := m.Span(&m.Entries[i]); first < last; first++ {
			f.users[fill[first]] = int32(i)
			fill[first]++
		}
	}
	m.coalesce(f, frames)
	return f
}

// coalesce turns frames into ranges.
func (m *Manifest) coalesce(f *Fetch, frames []int) {
	slices.SortFunc(frames, func(a, b int) int {
		x, y := m.Frames[a], m.Frames[b]
		return cmp.Or(cmp.Compare(x.Source, y.Source), cmp.Compare(x.Offset, y.Offset), cmp.Compare(a, b))
	})
	for _, i := range frames {
		x := m.Frames[i]
		end := x.Offset + x.Stored
		if n := len(f.Ranges); n > 0 && f.Ranges[n-1].Source == int(x.Source) {
			r := &f.Ranges[n-1]
			gap := x.Offset - r.Offset - r.Length
			if gap <= maxGap && end-r.Offset <= MaxRange {
				r.Length = max(r.Length, end-r.Offset)
				r.Frames = append(r.Frames, i)
				continue
			}
		}
		f.Ranges = append(f.Ranges, Range{int(x.Source), x.Offset, x.Stored, []int{i}})
	}
	for _, r := range f.Ranges {
		f.Bytes += r.Length
	}
}

// Cost is what a fresh instance pays for the contents of a release.
type Cost struct {
	Requests int
	Fetched  int64 // bytes
	Live     int64 // bytes of those that the release consists of; the rest are contents of other releases, and gaps
	First    int   // requests that a first push of the release over the same uplink would leave it with, as its packs show
}

// FreshCost is the cost of all of the release's contents. A frame is live as far as its decompressed bytes are needed.
func (m *Manifest) FreshCost() Cost {
	all := make([]int, len(m.Entries))
	for i := range all {
		all[i] = i
	}
	f := m.Fetch(all)
	c := Cost{Requests: len(f.Ranges), Fetched: f.Bytes, First: m.first(f)}
	for i, frame := range m.Frames {
		var parts [][2]int64
		for _, user := range f.Entries(i) {
			e := &m.Entries[user]
			if int(e.Frame) != i {
				parts = append(parts, [2]int64{0, frame.Length})
			} else {
				parts = append(parts, [2]int64{e.Offset, min(e.Offset+e.Size, frame.Length)})
			}
		}
		c.Live += int64(float64(frame.Stored) * float64(union(parts)) / float64(frame.Length))
	}
	return c
}

// first is [Cost.First]. A request would bring as many bytes as the packs have where they are smaller than a range: over a slow uplink a
// new baseline would be of such packs too. But the first pack of every push is small, or a single frame, as it measures the line. More than
// [MaxInline] makes packs, so of small ones as many as belong before the larger ones say nothing of the line.
func (m *Manifest) first(f *Fetch) int {
	var requests, small, inSmall, behind, larger float64 // requests for all but small packs, and for those; bytes
	for i, frame := range m.Frames {
		if len(f.Entries(i)) == 0 {
			continue
		}
		stored, src := float64(frame.Stored), m.Sources[frame.Source]
		all := src.End - headerSize
		size := min(all, MaxRange)
		switch {
		case src.Release != "":
			requests += stored / MaxRange
		case size > MinPackSize && frame.Stored < all:
			requests += stored / float64(size)
			larger += stored
		default:
			small += stored / float64(size)
			inSmall += stored
			behind += stored * (MaxInline/float64(max(size, MinPackSize)) - 1) // what is sent behind it at least, if it measures
		}
	}
	if behind > 0 {
		measure := min(1, larger/behind)
		requests += small*(1-measure) + inSmall*measure/MaxRange
	}
	return int(math.Ceil(requests))
}

// union is the length of what the parts cover together: equal contents share a place and count once.
func union(parts [][2]int64) (sum int64) {
	slices.SortFunc(parts, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	var end int64
	for _, p := range parts {
		if p[1] > end {
			sum += p[1] - max(p[0], end)
			end = p[1]
		}
	}
	return sum
}

// NeedsBaseline reports whether a push should store the whole release anew: a fresh instance needs more than twice
// the requests of a first push over the same uplink and 8, or less than 75 % of what it fetches is live.
func (c Cost) NeedsBaseline() bool {
	return c.Requests > 2*c.First+8 || 4*c.Live < 3*c.Fetched
}
