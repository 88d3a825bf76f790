package release

// table collects frames of several manifests, each once.
type table struct {
	sources []Source
	frames  []Frame
	source  map[Source]int32
	frame   map[Frame]int // by the frame with this table's source
}

// add takes the frame in, whose source is given because every manifest counts its own, and returns its number.
func (t *table) add(f Frame, s Source) int {
	if t.frame == nil {
		t.source, t.frame = map[Source]int32{}, map[Frame]int{}
	}
	at, ok := t.source[s]
	if !ok {
		at = int32(len(t.sources))
		t.sources = append(t.sources, s)
		t.source[s] = at
	}
	f.Source = at
	n, ok := t.frame[f]
	if !ok {
		n = len(t.frames)
		t.frames = append(t.frames, f)
		t.frame[f] = n
	}
	return n
}

// addRange takes frames first to before last of m in and returns the number of the first. It is not ok if they do
// not follow one another here, as files of several frames need it.
func (t *table) addRange(m *Manifest, first, last int) (start int, ok bool) {
	for i := first; i < last; i++ {
		n := t.add(m.Frames[i], m.Sources[m.Frames[i].Source])
		if i == first {
			start = n
		}
		if n != start+i-first {
			return 0, false
		}
	}
	return start, true
}

// canonical numbers frames and sources in the order in which the entries first need them, and drops the others. It
// changes the entries. What is no good manifest before is none afterwards.
func canonical(entries []Entry, frames []Frame, sources []Source) *Manifest {
	var t table
	all := &Manifest{entries, frames, sources}
	number := make([]int32, len(frames)) // new numbers plus one
	spans := 0                           // what is above the limit stays wrong, and is refused when it is encoded
	for i := range entries {
		e := &entries[i]
		if !e.hasContent() || e.Frame < 0 || int(e.Frame) >= len(frames) {
			continue
		}
		if number[e.Frame] == 0 || e.Offset+e.Size > frames[e.Frame].Length {
			last := int(e.Frame) + 1
			for rest := e.Offset + e.Size - frames[e.Frame].Length; rest > 0 && last < len(frames) && spans < MaxSpans; last++ {
				spans++
				rest -= frames[last].Length
			}
			for f := int(e.Frame); f < last; f++ {
				if number[f] == 0 {
					number[f] = 1 + int32(t.add(all.Frames[f], sources[frames[f].Source]))
				}
			}
		}
		e.Frame = number[e.Frame] - 1
	}
	return &Manifest{entries, t.frames, t.sources}
}
