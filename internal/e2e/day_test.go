package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"s3pulldeploy/internal/testenv/parts"
)

// day is what one script of a day in the life has: a site, its agents, and a push that goes on in the background.
type day struct {
	world  *world
	dir    string
	agents map[string]*parts.Process
	ended  chan error // of the push in the background
}

var days atomic.Int64

// TestDayInTheLife runs the scripts in testdata/day: what a person types, and what is then said, by the built commands with real
// servers. In the scripts, besides the usual:
//
//	agent ID [FILE]       start an agent, with FILE's lines in its settings, and wait until it is in service
//	stop ID | die ID      end it in good order, or as a power loss does
//	push CODE ARGS…       run push; it must exit with CODE
//	later CODE ARGS…      the same in the background; `ended` waits for it
//	until TEXT ARGS…      run push ARGS until it prints TEXT, a regular expression
//	serves ID FILE TEXT   an agent's live release has TEXT in FILE, or soon has
//	disk ID TEXT…         the folders of an agent's disk have these texts, sorted, in their page, or soon have
//	aged                  all that is in the bucket was written two days earlier
//	golden FILE           what push printed last is the text of FILE, where R is a release, N a sequence, T a time, S a size
func TestDayInTheLife(t *testing.T) {
	w := newWorld(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/day",
		Setup: func(e *testscript.Env) error {
			d := &day{world: w, dir: e.WorkDir, agents: map[string]*parts.Process{}}
			e.Values["day"] = d
			e.Defer(d.end)
			settings := fmt.Sprintf("site: shop\nbucket: day-%d-%d\nregion: %s\nendpoints: {s3: %q, dynamodb: %q}\n",
				os.Getpid(), days.Add(1), parts.Region, w.s3.Endpoint, w.dynamodb)
			return os.WriteFile(filepath.Join(d.dir, "config.yml"), []byte(settings), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": dayAgent, "stop": dayStop, "die": dayDie, "push": dayPush, "later": dayLater, "ended": dayEnded,
			"until": dayUntil, "serves": dayServes, "disk": dayDisk, "aged": dayAged, "golden": dayGolden,
		},
	})
}

// today is the script's day.
func today(ts *testscript.TestScript) *day { return ts.Value("day").(*day) }

// end ends what the script has left running.
func (d *day) end() {
	if d.ended != nil {
		<-d.ended
	}
	for _, p := range d.agents {
		_ = p.Stop(10 * time.Second) // of no account: the script is over
	}
}

// command is a push that prints to the script's output.
func (d *day) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.world.push, append([]string{"-config=config.yml"}, args...)...)
	cmd.Dir = d.dir
	cmd.Env = append(parts.Environ(), "XDG_CACHE_HOME="+filepath.Join(d.dir, "cache"))
	return cmd
}

// exits says whether a command ended with a code.
func exits(err error, want int) error {
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	if err == nil && code != want {
		err = fmt.Errorf("exit code %d, want %d", code, want)
	}
	return err
}

func dayPush(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := today(ts).command(ctx, args[1:]...)
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	ts.Check(exits(cmd.Run(), want))
}

func dayLater(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	d := today(ts)
	d.ended = make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTime)
		defer cancel()
		cmd := d.command(ctx, args[1:]...)
		out, err := cmd.CombinedOutput()
		if err = exits(err, want); err != nil {
			err = fmt.Errorf("push %v: %w\n%s", args[1:], err, out)
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(d.dir, "later"), out, 0o644))
		d.ended <- err
	}()
}

func dayEnded(ts *testscript.TestScript, _ bool, _ []string) {
	d := today(ts)
	err := <-d.ended
	d.ended = nil
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), ts.ReadFile("later"))
}

func dayUntil(ts *testscript.TestScript, _ bool, args []string) {
	text, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	for {
		out, _ := today(ts).command(ctx, args[1:]...).CombinedOutput()
		if text.Match(out) {
			_, _ = ts.Stdout().Write(out)
			return
		}
		if ctx.Err() != nil {
			ts.Fatalf("push %v never said %q:\n%s", args[1:], text, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func dayAgent(ts *testscript.TestScript, _ bool, args []string) {
	d, id := today(ts), args[0]
	dir := filepath.Join(d.dir, id)
	ts.Check(os.MkdirAll(filepath.Join(dir, "www"), 0o755))
	settings := ts.ReadFile("config.yml") + fmt.Sprintf("root: %s\ninstance_id: %s\nstate_dir: %s\npoll_interval: 1s\npointer_interval: 1s\n",
		filepath.Join(dir, "www"), id, filepath.Join(dir, "state"))
	settings = regexp.MustCompile(`(?m)^(rollout|ignore):.*\n`).ReplaceAllString(settings, "")
	if len(args) > 1 {
		settings += ts.ReadFile(args[1])
	}
	file := filepath.Join(dir, "config.yml")
	ts.Check(os.WriteFile(file, []byte(settings), 0o644))
	p, err := parts.Start(parts.Command{
		Name: "agent " + id, Path: d.world.agent, Args: []string{"-config=" + file},
		Env: append(parts.Environ(), "RUNTIME_DIRECTORY="+dir), Log: filepath.Join(dir, "log"),
	})
	ts.Check(err)
	d.agents[id] = p
	dayUntil(ts, false, []string{`^` + regexp.QuoteMeta(id) + ` .* serve `, "-status"})
}

func dayStop(ts *testscript.TestScript, _ bool, args []string) {
	p := today(ts).agents[args[0]]
	ts.Check(errors.Join(p.Stop(10*time.Second), p.Err()))
}

func dayDie(ts *testscript.TestScript, _ bool, args []string) {
	p := today(ts).agents[args[0]]
	ts.Check(p.Signal(syscall.SIGKILL))
	<-p.Done()
}

func dayServes(ts *testscript.TestScript, _ bool, args []string) {
	name := filepath.Join(today(ts).dir, args[0], "www", "active", args[1])
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(name)
		if got := string(bytes.TrimSpace(text)); got == args[2] {
			return
		} else if time.Since(began) > joinTime {
			ts.Fatalf("%s serves %q (%v), want %q", args[0], got, err, args[2])
		}
	}
}

func dayDisk(ts *testscript.TestScript, _ bool, args []string) {
	root := filepath.Join(today(ts).dir, args[0], "www")
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		var got []string
		entries, err := os.ReadDir(root)
		ts.Check(err)
		for _, e := range entries {
			if text, err := os.ReadFile(filepath.Join(root, e.Name(), "page")); err == nil && e.IsDir() {
				got = append(got, string(bytes.TrimSpace(text)))
			}
		}
		if slices.Sort(got); slices.Equal(got, args[1:]) {
			return
		} else if time.Since(began) > joinTime {
			ts.Fatalf("on the disk of %s there are %q, want %q", args[0], got, args[1:])
		}
	}
}

func dayAged(ts *testscript.TestScript, _ bool, _ []string) {
	settings := ts.ReadFile("config.yml")
	bucket := regexp.MustCompile(`(?m)^bucket: (.*)$`).FindStringSubmatch(settings)[1]
	ts.Check(age(filepath.Join(today(ts).world.s3.Dir, bucket, "shop"), 48*time.Hour))
}

// age makes all objects of a site look older to the S3 server.
func age(site string, by time.Duration) error {
	return filepath.WalkDir(site, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		then := info.ModTime().Add(-by)
		return os.Chtimes(name, then, then)
	})
}

// unstable is what is another in every run.
var unstable = []struct {
	text *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d`), "R"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:]+Z`), "T"},
	{regexp.MustCompile(`\b\d{10}\b`), "N"},
	{regexp.MustCompile(`day-\d+-\d+`), "BUCKET"},
	{regexp.MustCompile(`\b\d+(\.\d+)? (ms|s)\b`), "T"},
	{regexp.MustCompile(`\b\d+(\.\d+)? (B|kB|MB)\b`), "S"},
	{regexp.MustCompile(`, server http://[^ ,]+`), ""},
	{regexp.MustCompile(`(?m)^i-\d is (ready|preparing.*)\n`), ""}, // as the looks at the fleet have it
	{regexp.MustCompile(`opened by i-\d`), "opened by COORDINATOR"},
}

func dayGolden(ts *testscript.TestScript, _ bool, args []string) {
	got := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	for _, u := range unstable {
		got = u.text.ReplaceAllString(got, u.name)
	}
	if want := ts.ReadFile(args[0]); strings.TrimSpace(got) != strings.TrimSpace(want) {
		ts.Fatalf("push said\n%s\nwant\n%s", got, want)
	}
}
