package push

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"s3pulldeploy/internal/release"
)

// remove takes files out of the tree.
func (r *packedRig) remove(names ...string) {
	r.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(r.dir, name)); err != nil {
			r.Fatal(err)
		}
	}
}

// numbered is a tree of n files that do not compress, and their names.
func numbered(n, size int) (tree map[string]string, names []string) {
	tree = map[string]string{}
	for i := range n {
		name := fmt.Sprintf("f%02d", i)
		tree[name], names = noise(byte(i), size), append(names, name)
	}
	return tree, names
}

// dryRun is what a dry run says, which must write nothing.
func (r *packedRig) dryRun(args ...string) (result Result, said string) {
	r.Helper()
	r.wire.take()
	code, out, said := r.push(r.Context(), append([]string{"-deploy=" + r.dir, "-dry-run", "-json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != exitDone || result.Outcome != DryRun || result.Plan == nil {
		r.Fatalf("exit code %d, %v: %s %s", code, err, out, said)
	}
	if requests := r.wire.take(); matching(requests, "PUT") != nil || matching(requests, "DELETE") != nil {
		r.Errorf("a dry run wrote: %q", requests)
	}
	return result, said
}

func TestADryRunNamesEveryPath(t *testing.T) {
	for _, layout := range []string{"-layout=packed", "-layout=plain"} {
		tree, old := numbered(30, 10)
		var ignored []string
		for i := range 30 {
			name := fmt.Sprintf("x%02d.log", i)
			tree[name], ignored = "", append(ignored, name)
		}
		tree[".deployignore"], tree["tmp/y"], tree["kept"] = "*.log\ntmp/\n", "", noise(99, 10_000)
		r := newPackedRig(t, tree)
		r.deploy(layout)
		r.remove(old...)
		var fresh []string
		for i := range 30 {
			name := fmt.Sprintf("n%02d", i)
			fresh = append(fresh, name)
			r.write(name, name)
		}
		if layout == "-layout=plain" {
			fresh = append([]string{"kept"}, fresh...) // it stores every file anew
		}
		result, said := r.dryRun(layout)
		for sign, lists := range map[string][2][]string{
			"+": {result.Plan.Upload, fresh}, "-": {result.Plan.Remove, old}, "!": {result.Plan.Ignore, append([]string{"tmp/"}, ignored...)},
		} {
			if !slices.Equal(lists[0], lists[1]) {
				t.Errorf("%s: %s %q, want %q", layout, sign, lists[0], lists[1])
			}
			for _, name := range lists[1] {
				if !strings.Contains(said, "\n  "+sign+" "+name+"\n") {
					t.Errorf("%s: nothing is said of %s %s", layout, sign, name)
				}
			}
		}
	}
}

func TestADryRunOfTheSameTreeNamesWhatIsIgnored(t *testing.T) {
	for _, layout := range []string{"-layout=packed", "-layout=plain"} {
		r := newPackedRig(t, map[string]string{"a": "1", ".deployignore": "*.log\ntmp/\n", "x.log": "", "tmp/y": ""})
		first, _ := r.deploy(layout)
		r.wire.take()
		code, out, said := r.push(t.Context(), "-deploy="+r.dir, "-dry-run", "-json", layout)
		var result Result
		if err := json.Unmarshal([]byte(out), &result); err != nil || code != exitDone || result.Outcome != Unchanged || result.Release != first.Release {
			t.Fatalf("%s: exit code %d, %v: %s %s", layout, code, err, out, said)
		}
		if p := result.Plan; p == nil || p.Baseline || len(p.Upload)+len(p.Remove) > 0 || !slices.Equal(p.Ignore, []string{"tmp/", "x.log"}) {
			t.Errorf("%s: %+v", layout, p)
		}
		for _, want := range []string{"\n  ! tmp/\n", "\n  ! x.log\n", "unchanged: " + string(first.Release)} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: %q lacks %q", layout, said, want)
			}
		}
		if requests := r.wire.take(); matching(requests, "PUT") != nil || matching(requests, "DELETE") != nil {
			t.Errorf("%s: a dry run wrote: %q", layout, requests)
		}
	}
}

func TestADryRunAnnouncesTheBaselineThatAPushStores(t *testing.T) {
	tree, names := numbered(60, 200_000)
	r := newPackedRig(t, tree)
	first, said := r.dryRun()
	if !first.Plan.Baseline || !slices.Equal(first.Plan.Upload, names) || !strings.Contains(said, "new baseline") {
		t.Errorf("of a first push: %+v: %s", first.Plan, said)
	}
	r.deploy()
	r.write("new", "1")
	if small, said := r.dryRun(); small.Plan.Baseline || !slices.Equal(small.Plan.Upload, []string{"new"}) || strings.Contains(said, "baseline") {
		t.Errorf("of a small change: %+v: %s", small.Plan, said)
	}
	var stay []string
	for i, name := range names { // every third of what is there is needed
		if i%3 == 0 {
			stay = append(stay, name)
		} else {
			r.remove(name)
		}
	}
	stay = append(stay, "new")
	plan, said := r.dryRun()
	if !plan.Plan.Baseline || !slices.Equal(plan.Plan.Upload, stay) || len(plan.Plan.Remove) != 40 || !strings.Contains(said, "new baseline") {
		t.Errorf("%+v: %s", plan.Plan, said)
	}
	result, _ := r.deploy()
	if result.UploadedBytes < plan.UploadedBytes {
		t.Errorf("%d bytes were uploaded, %d announced", result.UploadedBytes, plan.UploadedBytes)
	}
	r.pull()
}

func TestABaselineUploadsNothingTwice(t *testing.T) {
	tree, names := numbered(60, 200_000)
	r := newPackedRig(t, tree)
	r.deploy()
	for i, name := range names {
		if i%3 != 0 {
			r.remove(name)
		}
	}
	r.write("new", noise(99, 9<<20)) // more than a delta holds
	result, requests := r.deploy()
	m := r.pull()
	c := m.FreshCost()
	if c.Live != c.Fetched || result.UploadedBytes < c.Live || result.UploadedBytes > c.Live+100_000 {
		t.Errorf("%d bytes were sent for a release of %+v: %q", result.UploadedBytes, c, matching(requests, "PUT"))
	}
}

func TestAnInterruptedBaselineGoesOn(t *testing.T) {
	tree, names := numbered(60, 700_000)
	r := newPackedRig(t, tree)
	r.deploy()
	before := matching(r.objects(), "p/")
	for i, name := range names {
		if i%3 != 0 {
			r.remove(name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var packs atomic.Int32
	r.wire.mu.Lock()
	r.wire.before = func(request string, _ *http.Request) bool { // one pack arrives, the others break
		return len(matching([]string{request}, "PUT", "/p/")) == 0 || packs.Add(1) == 1
	}
	r.wire.after = func(request string) {
		if len(matching([]string{request}, "PUT", "/p/")) == 1 {
			cancel()
		}
	}
	r.wire.mu.Unlock()
	if code, _, said := r.push(ctx, "-deploy="+r.dir); code != exitFailed {
		t.Fatalf("exit code %d: %s", code, said)
	}
	r.wire.mu.Lock()
	r.wire.before, r.wire.after = nil, nil
	r.wire.mu.Unlock()
	left := slices.DeleteFunc(matching(r.objects(), "p/"), func(key string) bool { return slices.Contains(before, key) })
	if len(left) != 1 {
		t.Fatalf("%q are there after the interruption", left)
	}
	r.write("a", noise(99, 900_000)) // now other packs would be made
	result, requests := r.deploy()
	m := r.pull()
	sum, used := strings.TrimPrefix(left[0], "p/"), false
	for _, src := range m.Sources {
		used = used || src.Key() == "p/"+sum
	}
	if !used || matching(requests, "PUT", sum) != nil {
		t.Errorf("%s was of no use: %q", left[0], matching(requests, "PUT"))
	}
	if c := m.FreshCost(); c.Live != c.Fetched || c.NeedsBaseline() || result.UploadedBytes > c.Live-600_000 {
		t.Errorf("%d bytes were sent for %+v", result.UploadedBytes, c)
	}
}

func TestAChangeThatADeltaHoldsIsWhollyInIt(t *testing.T) {
	tree, _ := numbered(60, 700_000)
	r := newPackedRig(t, tree)
	r.deploy()
	incompressible := func(seed byte) string { return noise(seed, 1<<20) } // 3 MiB
	for _, c := range []struct {
		name     string
		change   func(seed byte) string
		requests int // three writes, the pointer, and two listings where it is worth looking for what is there
	}{
		{"incompressible", incompressible, 4},
		{"compressible", func(seed byte) string { return strings.Repeat(noise(seed, 700_000), 5) }, 6}, // 10 MB
		{"a revert to what the release before the parent had", incompressible, 4},
	} {
		parent := r.manifest(r.pointer())
		for i := range byte(3) {
			r.write(fmt.Sprintf("new%d", i), c.change(200+i))
		}
		_, requests := r.deploy()
		if len(requests) != c.requests || len(matching(requests, "PUT")) != 3 || matching(requests, "PUT", "/p/") != nil {
			t.Errorf("%s: %q", c.name, requests)
		}
		p := r.pointer()
		if p.Delta == nil {
			t.Fatalf("%s: no delta", c.name)
		}
		object, err := r.store.GetDelta(t.Context(), p.Release, p.Delta.Parent, p.Delta.Content)
		if err != nil {
			t.Fatal(err)
		}
		delta, err := release.ParseDelta(object)
		if err != nil {
			t.Fatal(err)
		}
		m, err := delta.Apply(parent)
		if err != nil {
			t.Fatal(err)
		}
		for i := range m.Entries {
			if !strings.HasPrefix(m.Entries[i].Path, "new") {
				continue
			}
			for first, last := m.Span(&m.Entries[i]); first < last; first++ {
				if src := m.Sources[m.Frames[first].Source]; src.Release != p.Release {
					t.Errorf("%s: a frame of %s is in %s", c.name, m.Entries[i].Path, src.Key())
				}
			}
		}
		r.pull()
	}
}
