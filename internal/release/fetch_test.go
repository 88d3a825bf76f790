package release

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
)

// framesAt is a manifest of one file a frame, the frames at these offsets of the pack, each of size bytes raw.
func framesAt(size int64, end int64, offsets ...int64) *Manifest {
	m := &Manifest{Sources: []Source{{End: end}}}
	for i, at := range offsets {
		m.Frames = append(m.Frames, Frame{0, at, size, size})
		m.Entries = append(m.Entries, Entry{Path: string(rune('a' + i)), Kind: File, Size: size, Frame: int32(i)})
	}
	return m
}

func all(m *Manifest) (list []int) {
	for i := range m.Entries {
		list = append(list, i)
	}
	return list
}

func TestFetchCoalescesOverSmallGaps(t *testing.T) {
	const kib = 1 << 10
	for name, c := range map[string]struct {
		m    *Manifest
		want []Range
	}{
		"neighbours":   {framesAt(kib, 100*kib, 8, 8+kib), []Range{{0, 8, 2 * kib, []int{0, 1}}}},
		"largest gap":  {framesAt(kib, 1<<24, 8, 8+kib+maxGap), []Range{{0, 8, 2*kib + maxGap, []int{0, 1}}}},
		"one too wide": {framesAt(kib, 1<<24, 8, 9+kib+maxGap), []Range{{0, 8, kib, []int{0}}, {0, 9 + kib + maxGap, kib, []int{1}}}},
		"backwards":    {framesAt(kib, 100*kib, 8+kib, 8), []Range{{0, 8, 2 * kib, []int{1, 0}}}},
		"half there":   {framesAt(3<<20, 1<<24, 8, 8+5<<20), []Range{{0, 8, 3 << 20, []int{0}}, {0, 8 + 5<<20, 3 << 20, []int{1}}}}, // however much of the pack is needed
		"8 MiB":        {framesAt(4<<20, 1<<24, 8, 8+4<<20), []Range{{0, 8, 8 << 20, []int{0, 1}}}},
		"above 8 MiB":  {framesAt(4<<20, 1<<24, 8, 9+4<<20), []Range{{0, 8, 4 << 20, []int{0}}, {0, 9 + 4<<20, 4 << 20, []int{1}}}},
	} {
		f := c.m.Fetch(all(c.m))
		if !reflect.DeepEqual(f.Ranges, c.want) {
			t.Errorf("%s: %+v, want %+v", name, f.Ranges, c.want)
		}
	}
}

func TestFetchOnlyWhatIsNeeded(t *testing.T) {
	m := smallManifest()
	run, _ := m.Find("app/run")
	large, _ := m.Find("large.bin")
	empty, _ := m.Find("empty")
	fresh, _ := m.Find("new/ü.php")
	f := m.Fetch([]int{run, empty})
	if want := []Range{{0, 8, 60, []int{0}}}; !reflect.DeepEqual(f.Ranges, want) || f.Bytes != 60 {
		t.Errorf("ranges %+v", f.Ranges)
	}
	if got := f.Entries(0); !slices.Equal(got, []int32{int32(run)}) {
		t.Errorf("entries of frame 0: %v", got)
	}
	f = m.Fetch([]int{large, fresh})
	want := []Range{{0, 68, MaxFrame, []int{1}}, {1, 8, 9, []int{2}}, {2, 8, 40, []int{3}}}
	if !reflect.DeepEqual(f.Ranges, want) || !slices.Equal(f.Entries(2), []int32{int32(large)}) || len(f.Entries(0)) != 0 {
		t.Errorf("ranges %+v", f.Ranges)
	}
	if part, at := m.Part(&m.Entries[large], 2, []byte("123456789")); at != MaxFrame || string(part) != "123456789" {
		t.Errorf("part %q at %d", part, at)
	}
}

func TestFreshCostCountsWhatIsDead(t *testing.T) {
	m := framesAt(1000, 4000, 8, 2008)
	m.Entries[1].Size, m.Entries[1].Offset = 250, 500
	m.Entries = append(m.Entries, Entry{Path: "c", Kind: File, Size: 250, Offset: 500, Frame: 1}) // equal contents count once
	if c := m.FreshCost(); c != (Cost{1, 3000, 1250, 1}) {
		t.Errorf("cost %+v", c)
	}
}

func TestAFirstPushOverASlowUplinkNeedsNoBaseline(t *testing.T) {
	m := &Manifest{}
	for i := range int32(40) { // a MiB each in packs of their own, and then in deltas
		s := Source{Pack: Sum{byte(i)}, End: 8 + 1<<20}
		if i >= 20 {
			s = Source{Release: "r", Parent: ID(rune('a' + i)), End: 8 + 1<<20}
		}
		m.Sources = append(m.Sources, s)
		m.Frames = append(m.Frames, Frame{i, 8, 1 << 20, 1 << 20})
		m.Entries = append(m.Entries, Entry{Kind: File, Size: 1 << 20, Frame: i})
		if c := m.FreshCost(); c.Requests != int(i)+1 || c.First != min(int(i)+1, 20+(int(i)+1-20+7)/8) || c.NeedsBaseline() {
			t.Errorf("%d sources: %+v", i+1, c)
		}
	}
	fast := &Manifest{}
	fast.stores(MinPackSize, PackSize, PackSize, PackSize, PackSize, PackSize, PackSize)
	for i := range 40 { // and then from a slow line
		fast.stores(MinPackSize)
		if c := fast.FreshCost(); c.NeedsBaseline() {
			t.Errorf("%d packs behind large ones: %+v", i+1, c)
		}
	}
	m.Sources = m.Sources[20:]
	m.Frames = m.Frames[:20]
	m.Entries = m.Entries[:20]
	if c := m.FreshCost(); c.Requests != 20 || c.First != 3 || !c.NeedsBaseline() {
		t.Errorf("deltas alone: %+v", c)
	}
}

// stores adds packs with so many bytes each, in frames of up to a MiB, to a manifest.
func (m *Manifest) stores(packs ...int64) {
	for _, size := range packs {
		m.storesFrames(size, groupSize)
	}
}

// storesFrames adds a pack in frames of up to so many bytes.
func (m *Manifest) storesFrames(size, frame int64) {
	n := len(m.Sources)
	m.Sources = append(m.Sources, Source{Pack: Sum{byte(n), byte(n >> 8), 1}, End: headerSize + size})
	for at := int64(0); at < size; at += frame {
		length := min(frame, size-at)
		m.Entries = append(m.Entries, Entry{Kind: File, Size: length, Frame: int32(len(m.Frames))})
		m.Frames = append(m.Frames, Frame{int32(n), headerSize + at, length, length})
	}
}

// A push of just over 9 MiB over a fast line is a pack of a MiB, or of a larger frame, which measures it, and one of just over a range: three
// reads.
func TestAHundredPushesOfAPackEachLeaveAFreshSyncCheap(t *testing.T) {
	const rest = MaxRange + 64<<10
	for _, measure := range []int64{MinPackSize, MinPackSize + 1, 2 << 20, MaxFrame} {
		m, baselines := &Manifest{}, 0
		for n := range int64(100) {
			first := &Manifest{}
			first.storesFrames(measure, MaxFrame)
			for all := n*(measure+rest) + rest; all > 0; all -= PackSize {
				first.stores(min(all, PackSize))
			}
			if m.FreshCost().NeedsBaseline() {
				m = first
				baselines++
			} else {
				m.storesFrames(measure, MaxFrame)
				m.stores(rest)
			}
			if c, x := m.FreshCost(), first.FreshCost().Requests; c.Requests > 2*x+8 {
				t.Errorf("%d bytes measure, push %d: %d requests, of a first push %d", measure, n, c.Requests, x)
			}
			if first.FreshCost().NeedsBaseline() {
				t.Errorf("%d bytes measure, push %d: a new baseline needs another", measure, n)
			}
		}
		// Without any it is 300 requests; those of a first push are fewer than half of that but where a frame of 4 MiB measures.
		if baselines < 1 && measure < MaxFrame || baselines > 5 {
			t.Errorf("%d bytes measure: %d of 100 pushes stored everything anew", measure, baselines)
		}
	}
}

// A range ends at a frame, and a pack where it would need one more: frames of small files, up to a MiB, are read by more than 7 MiB at once,
// those of larger files, up to 4 MiB, by more than 4 MiB. The first pack, which measures the line, takes one more.
func TestAFirstPushIsReadByLargeRanges(t *testing.T) {
	zeros := make([]byte, MaxFrame)
	for size, least := range map[int64]int64{100_000: 7 << 20, 900_000: 7 << 20, 9 << 20: 4 << 20, 50 << 20: 4 << 20} {
		for _, percent := range []int64{30, 70, 100} { // of the contents is stored
			var entries []Entry
			for i := range 60<<20/size + 1 {
				entries = append(entries, Entry{Path: fmt.Sprintf("%06d", i), Kind: File, Size: size, Sum: Sum{byte(i), byte(i >> 8), 1}})
			}
			d, err := NewDraft(entries, nil, nil, 1)
			if err != nil {
				t.Fatal(err)
			}
			packer := d.Packer(MinPackSize)
			for i, f := range d.Frames {
				full, err := packer.Put(i, zeros[:max(1, f.Length*percent/100)])
				if err != nil {
					t.Fatal(err)
				}
				if len(full) > 0 {
					packer.Resize(PackSize)
				}
			}
			packer.Flush()
			m, err := d.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			if c := m.FreshCost(); c.Fetched < 10<<20 || c.Requests > 1+int((c.Fetched+least-1)/least) {
				t.Errorf("files of %d bytes, %d %% stored: %+v, want one request and one for each %d bytes", size, percent, c, least)
			}
		}
	}
}

func TestUnionCountsOverlapsOnce(t *testing.T) {
	if got := union([][2]int64{{50, 60}, {0, 10}, {5, 20}, {0, 10}, {6, 8}}); got != 30 {
		t.Errorf("%d bytes", got)
	}
}

func TestNeedsBaseline(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		cost Cost
		want bool
	}{
		{Cost{}, false},
		{Cost{10, 8 * mib, 8 * mib, 1}, false},
		{Cost{11, 8 * mib, 8 * mib, 1}, true},
		{Cost{12, 9 * mib, 9 * mib, 2}, false},    // two reads would do
		{Cost{14, 14 * mib, 14 * mib, 14}, false}, // packs of 1 MiB
		{Cost{2, 4 * mib, 3 * mib, 1}, false},
		{Cost{2, 4 * mib, 3*mib - 1, 1}, true},
	} {
		if got := c.cost.NeedsBaseline(); got != c.want {
			t.Errorf("%+v: %v", c.cost, got)
		}
	}
}

func TestABaselineKeepsTimesAndNothingElse(t *testing.T) {
	tr := randomTree(6, 60)
	b := bucket{}
	first, _ := b.push(t, tr, "r1", nil, "", 0, 10)
	d, err := NewDraft(tr.entries, first, nil, 99)
	if err != nil {
		t.Fatal(err)
	}
	if d.NewBytes == 0 || d.NewFiles == 0 {
		t.Error("a baseline stores nothing")
	}
	for _, e := range d.entries {
		if e.MTime != 10 {
			t.Errorf("%s: mtime %d", e.Path, e.MTime)
		}
	}
}
