package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/testenv"
)

// glass is a terminal of 80 columns, and what a person sees on it: of the codes, those that push draws with.
type glass struct {
	stream *os.File // what a command writes to
	height int
	done   chan struct{}

	mu       sync.Mutex
	raw      []byte
	lines    []string // from the first, also those that have scrolled away
	top, row int      // of the visible lines and the cursor's, in lines
}

var code = regexp.MustCompile(`^\x1b\[(\d*)([AHJK])`)

// newGlass opens a terminal of so many lines.
func newGlass(t *testing.T, height int) *glass {
	t.Helper()
	t.Setenv("TERM", "xterm")
	keeper, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keeper.Close() })
	n, err := unix.IoctlGetInt(int(keeper.Fd()), unix.TIOCGPTN)
	if err = errors.Join(err, unix.IoctlSetPointerInt(int(keeper.Fd()), unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(int(keeper.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: 80})); err != nil {
		t.Fatal(err)
	}
	stream, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := &glass{stream: stream, height: height, lines: []string{""}, done: make(chan struct{})}
	go func() {
		defer close(g.done)
		buf := make([]byte, 64<<10)
		for {
			n, err := keeper.Read(buf)
			g.write(buf[:n])
			if err != nil { // the stream was closed
				return
			}
		}
	}()
	t.Cleanup(g.close)
	return g
}

// close waits for everything that was written.
func (g *glass) close() {
	g.stream.Close()
	<-g.done
}

func (g *glass) write(text []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.raw = append(g.raw, text...)
	g.lines, g.top, g.row = []string{""}, 0, 0
	overwrite := true // the cursor stands at the line's begin
	for rest := g.raw; len(rest) > 0; {
		if m := code.FindSubmatch(rest); m != nil {
			rest = rest[len(m[0]):]
			g.obey(string(m[2]), string(m[1]), overwrite)
			continue
		}
		switch c := rest[0]; c {
		case '\n':
			if g.row++; g.row == len(g.lines) {
				g.lines = append(g.lines, "")
			}
			g.top = max(g.top, g.row-g.height+1)
			overwrite = true
		case '\r':
			overwrite = true
		default:
			if overwrite {
				g.lines[g.row], overwrite = "", false
			}
			g.lines[g.row] += string(c)
		}
		rest = rest[1:]
	}
}

// obey carries out one code.
func (g *glass) obey(what, number string, atBegin bool) {
	switch what {
	case "A":
		n, _ := strconv.Atoi(number)
		g.row = max(g.top, g.row-n)
	case "H":
		g.row = g.top
	case "J":
		g.lines = g.lines[:g.row+1]
		fallthrough
	case "K":
		if atBegin {
			g.lines[g.row] = ""
		}
	}
}

func (g *glass) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.lines, "\n")
}

// await waits until the terminal shows a text, and nowhere another.
func (g *glass) await(t *testing.T, text, other string) {
	t.Helper()
	g.awaitThat(t, fmt.Sprintf("%q without %q", text, other), func(shown string) bool {
		return strings.Contains(shown, text) && !strings.Contains(shown, other)
	}, func() {})
}

// drawn is all that was ever written.
func (g *glass) drawn() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return string(g.raw)
}

// awaitThat waits until the terminal shows something, and then lets go, also where that never comes.
func (g *glass) awaitThat(t *testing.T, what string, holds func(shown string) bool, then func()) {
	t.Helper()
	defer then()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		shown := g.String()
		if holds(shown) {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("no %s on\n%s", what, shown)
		}
	}
}

// The whole of a push on a terminal; what instances do is in TestARolloutsInstancesAreDrawnInPlace.
func TestAPushOnATerminalShowsHowFarAndHowFastItUploads(t *testing.T) {
	r := newPackedRig(t, map[string]string{"big": noise(1, 9<<20)})
	g := newGlass(t, 24)
	var packs atomic.Int64
	seen := make(chan struct{})
	r.wire.lets(func(request string, _ *http.Request) bool {
		if strings.HasPrefix(request, "PUT") && strings.Contains(request, "/shop/p/") && packs.Add(1) == 2 {
			<-seen
		}
		return true
	})
	ended := make(chan int, 1)
	go func() {
		ended <- Main(t.Context(), []string{"-config=" + r.config, "-deploy=" + r.dir}, strings.NewReader(""), g.stream, g.stream)
	}()
	bar := regexp.MustCompile(`\d% \|.*\| \(\d[\d.]*( kB)?/9\.4 MB, \d[\d.]* [kM]?B/s\)`)
	g.awaitThat(t, bar.String(), func(string) bool { return bar.MatchString(g.drawn()) }, func() { close(seen) })
	if code := <-ended; code != exitDone {
		t.Errorf("exit code %d", code)
	}
	g.close()
	story := `^shop in \S+, .*, no instance live yet
scanning \S+
uploading 1 new file of \S+, 9\.4 MB before compression
uploaded in .*
published \S+ as sequence \d+
\S+ is published: 1 file \(.*\) new; no instance is live, the first one will bring it up
$`
	if said := g.String(); !regexp.MustCompile(story).MatchString(said) {
		t.Errorf("the screen shows\n%s\nwant\n%s", said, story)
	}
	if colour := regexp.MustCompile(`\x1b\[[\d;]*m`).FindString(g.drawn()); colour != "" { // with NO_COLOR or without
		t.Errorf("a colour: %q", colour)
	}
}

func TestAStatusIsDrawnInPlace(t *testing.T) {
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	dir := t.TempDir()
	settings := fmt.Sprintf("site: shop\nbucket: %s\ntable: %s\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\n", s3.NewBucket(t), testenv.Name(t), s3.Endpoint, dynamo)
	file, app := filepath.Join(dir, "config.yml"), filepath.Join(dir, "app")
	if err := errors.Join(os.Mkdir(app, 0o755), os.WriteFile(filepath.Join(app, "x"), nil, 0o644), os.WriteFile(file, []byte(settings), 0o644)); err != nil {
		t.Fatal(err)
	}
	call := func(ctx context.Context, out io.Writer, args ...string) int {
		return Main(ctx, append([]string{"-config=" + file}, args...), strings.NewReader(""), out, out)
	}
	testenv.Patiently(t, func() error {
		var said strings.Builder
		if code := call(t.Context(), &said, "-init"); code != exitDone {
			return errors.New(said.String())
		}
		return nil
	})
	g := newGlass(t, 24)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- call(ctx, g.stream, "-status", "-watch") }()
	defer func() { cancel(); <-ended }()
	g.await(t, "nothing was pushed yet\n", "pointer")
	if code := call(t.Context(), io.Discard, "-deploy="+app, "-wait=false"); code != exitDone {
		t.Fatalf("-deploy: exit code %d", code)
	}
	g.await(t, "\npointer ", "nothing was pushed yet")
}

func TestAPageThatIsTooLongIsCutToTheScreen(t *testing.T) {
	g := newGlass(t, 6)
	size := screen(g.stream)
	for _, page := range []string{"one\ntwo\n", strings.Repeat("x", 100) + "\n1\n2\n3\n4\n5\n6\n", "three\n"} {
		if _, err := io.WriteString(g.stream, redraw(page, size)); err != nil {
			t.Fatal(err)
		}
		want := page
		if strings.HasPrefix(page, "xx") {
			want = strings.Repeat("x", 80) + "\n1\n2\n3\nand 3 more lines\n"
		}
		for began := time.Now(); g.String() != want; time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("the screen shows\n%q, want\n%q", g, want)
			}
		}
	}
}

func TestARolloutsInstancesAreDrawnInPlace(t *testing.T) {
	g := newGlass(t, 24)
	b := (&console{human: g.stream}).board()
	b.say("epoch 1 opened by i-0")
	b.show([]row{{"i-0", isPreparing, "1 of 9 MB"}, {"i-10", isReady, ""}})
	b.show([]row{{"i-0", isPreparing, "8 of 9 MB"}, {"i-10", isReady, ""}})
	b.say("committed, flipping")
	b.show([]row{{"i-0", isHealthy, ""}, {"i-10", isUnwell, ""}})
	b.leave()
	b.say("epoch 2 opened by i-0")
	var many []row
	for n := range boardMost {
		many = append(many, row{fmt.Sprintf("n-%02d", n), isReady, ""})
	}
	b.show(many)
	b.show(append(many, row{"z", isPreparing, "5 of 9 MB"}))
	b.say("the end")
	g.close()
	want := `epoch 1 opened by i-0
committed, flipping
  i-0   live and healthy
  i-10  not well
epoch 2 opened by i-0
the end
21 instances: 1 preparing, 20 ready
`
	if got := g.String(); got != want {
		t.Errorf("the screen shows\n%s\nwant\n%s", got, want)
	}
	if strings.Count(string(g.raw), "8 of 9 MB") == 0 || strings.Count(string(g.raw), "n-19") != 1 {
		t.Errorf("what was drawn:\n%q", g.raw)
	}
}

func TestARolloutInALogHasALineForEachStep(t *testing.T) {
	var out strings.Builder
	b := &board{out: &out}
	for _, detail := range []string{"", "1 of 9 MB", "8 of 9 MB", "preview"} {
		b.show([]row{{"i-1", isReady, ""}, {"i-0", isPreparing, detail}})
	}
	b.show([]row{{"i-0", isReady, ""}, {"i-1", isSilent, ""}})
	b.show([]row{{"i-0", isFlipping, ""}, {"i-1", isRefusing, ""}})
	b.show([]row{{"i-0", isHealthy, ""}, {"i-1", isRefusing, ""}})
	var many []row
	for n := range boardMost + 1 {
		many = append(many, row{fmt.Sprint("n-", n), isPreparing, ""})
	}
	b.show(many)
	b.show(many)
	want := `i-1 is ready
i-0 is preparing: 1 of 9 MB
i-0 is preparing: preview
i-0 is ready
i-1 is silent
i-0 is live and healthy
21 instances: 21 preparing
`
	if got := out.String(); got != want {
		t.Errorf("it says\n%s\nwant\n%s", got, want)
	}
}
