package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestScripts runs the command as a user does. In the scripts, besides the usual:
//
//	push CODE ARGS…     run push; it must exit with CODE
//	made                create bucket and table, empty
//	objects             list the keys below the site
//	put KEY FILE        write an object below the site
//	json PATH VALUE     the last output, as JSON, has VALUE at PATH
//	frozen WHY          freeze the site, which has a head
//	unfrozen            lift it
//	committed RELEASE   write a head that has committed to RELEASE, and its log
func TestScripts(t *testing.T) {
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			name := testenv.Name(t)
			e.Setenv("BUCKET", name)
			e.Setenv("S3", s3.Endpoint)
			e.Setenv("DIR", filepath.Join(s3.Dir, name))
			config := fmt.Sprintf("site: shop\nbucket: %s\ntable: %s\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\n",
				name, name, s3.Endpoint, dynamo)
			return os.WriteFile(filepath.Join(e.WorkDir, "config.yml"), []byte(config), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"push": cmdPush, "made": cmdMade, "objects": cmdObjects, "put": cmdPut, "json": cmdJSON,
			"frozen": cmdFrozen, "unfrozen": cmdUnfrozen, "committed": cmdCommitted,
		},
	})
}

// cmdPush runs the command in this process. A path below the script's directory is written $WORK/….
func cmdPush(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	args = append([]string{"-config=" + ts.MkAbs("config.yml")}, args[1:]...)
	if got := Main(context.Background(), args, strings.NewReader(""), ts.Stdout(), ts.Stderr()); got != want {
		ts.Fatalf("push %v: exit code %d, want %d", args, got, want)
	}
}

func cmdMade(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(os.Mkdir(ts.Getenv("DIR"), 0o755))
	_, err := scriptTable(ts).Init(context.Background())
	ts.Check(err)
}

// scriptTable is the script's table, called as its bucket.
func scriptTable(ts *testscript.TestScript) *table.Dynamo {
	text, err := os.ReadFile(ts.MkAbs("config.yml"))
	ts.Check(err)
	_, rest, _ := strings.Cut(string(text), `dynamodb: "`)
	endpoint, _, _ := strings.Cut(rest, `"`)
	aws, err := account.Load(context.Background(), account.Options{OwnEndpoints: true})
	ts.Check(err)
	return table.NewDynamo(table.Options{Config: aws, Endpoint: endpoint, Name: ts.Getenv("BUCKET")})
}

func cmdObjects(ts *testscript.TestScript, _ bool, _ []string) {
	root := filepath.Join(ts.Getenv("DIR"), "shop")
	ts.Check(filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, name)
			fmt.Fprintln(ts.Stdout(), rel)
		}
		return err
	}))
}

func cmdPut(ts *testscript.TestScript, _ bool, args []string) {
	name := filepath.Join(ts.Getenv("DIR"), "shop", args[0])
	ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
	ts.Check(os.WriteFile(name, []byte(ts.ReadFile(args[1])), 0o644))
}

func cmdJSON(ts *testscript.TestScript, _ bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for key := range strings.SplitSeq(args[0], ".") {
		object, ok := v.(map[string]any)
		if _, has := object[key]; !ok || !has {
			ts.Fatalf("no %q in %v", key, v)
		}
		v = object[key]
	}
	if got, _ := json.Marshal(v); string(got) != args[1] {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}

func cmdFrozen(ts *testscript.TestScript, _ bool, args []string) {
	l := fleet.NewLedger(scriptTable(ts), ts.Getenv("BUCKET")+"/shop", func() string { return "t" })
	h, _, err := l.Head(context.Background(), true)
	ts.Check(err)
	_, err = l.Request(context.Background(), h, fleet.Item{"frozen": fleet.Item{"by": "maria", "why": args[0], "until": int64(0)}})
	ts.Check(err)
}

func cmdUnfrozen(ts *testscript.TestScript, _ bool, _ []string) {
	l := fleet.NewLedger(scriptTable(ts), ts.Getenv("BUCKET")+"/shop", func() string { return "u" })
	h, _, err := l.Head(context.Background(), true)
	ts.Check(err)
	_, err = l.Request(context.Background(), h, fleet.Item{}, "frozen")
	ts.Check(err)
}

// cmdCommitted moves the head through one epoch to the pointer's release.
func cmdCommitted(ts *testscript.TestScript, _ bool, _ []string) {
	n := 0
	l := fleet.NewLedger(scriptTable(ts), ts.Getenv("BUCKET")+"/shop", func() string { n++; return strconv.Itoa(n) })
	text, err := os.ReadFile(filepath.Join(ts.Getenv("DIR"), "shop", "latest-deploy"))
	ts.Check(err)
	note, err := fleet.NewNote(text)
	ts.Check(err)
	ctx := context.Background()
	ts.Check(l.PutNote(ctx, note))
	h, _, err := l.Head(ctx, true)
	ts.Check(err)
	h, err = l.Open(ctx, h, note, "i-1")
	ts.Check(err)
	h, err = l.Decide(ctx, h, fleet.Outcome{Commit: true, Members: 1})
	ts.Check(err)
	h, err = l.Done(ctx, h, true, "")
	ts.Check(err)
	_, err = l.PutLog(ctx, fleet.Log{
		Epoch: h.Epoch, Outcome: "done", Kind: h.Kind, Release: h.Release, Sequence: h.Sequence,
	}, time.Now())
	ts.Check(err)
}

func TestEachEndHasItsExitCode(t *testing.T) {
	cases := []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("disk full"), exitFailed},
		{kind{errUsage, errors.New("x")}, exitUsage},
		{fmt.Errorf("deploy: %w", kind{errAborted, errors.New("x")}), exitAborted},
		{kind{errTimeout, advise(errors.New("x"), "y")}, exitTimeout},
		{kind{errConflict, errors.New("x")}, exitConflict},
		{advise(fmt.Errorf("publish: %w", &store.ConflictError{}), "y"), exitConflict},
	}
	seen := map[int]bool{}
	for _, c := range cases {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("exitCode(%v) = %d, want %d", c.err, got, c.want)
		}
		seen[c.want] = true
	}
	var help bytes.Buffer
	usage(&help)
	for _, e := range exits {
		if !seen[e.code] {
			t.Errorf("exit code %d is not tested", e.code)
		}
		if line := fmt.Sprintf("  %d  %s\n", e.code, e.meaning); !strings.Contains(help.String(), line) {
			t.Errorf("help lacks %q", line)
		}
	}
}

func TestEachOutcomeHasItsExitCode(t *testing.T) {
	for outcome, want := range map[Outcome]int{
		Done: exitDone, Published: exitDone, Unchanged: exitDone, DryRun: exitDone,
		Aborted: exitAborted, RolledBack: exitAborted, TimedOut: exitTimeout, Superseded: exitConflict, "": exitFailed,
	} {
		if got := exitCode((&Result{Outcome: outcome}).err()); got != want {
			t.Errorf("outcome %q: exit code %d, want %d", outcome, got, want)
		}
	}
	if got := exitCode((&Result{Outcome: Done, unhealthy: true}).err()); got != exitFailed {
		t.Errorf("live but not healthy: exit code %d, want %d", got, exitFailed)
	}
}

func TestHintsComeFromWhatWentWrong(t *testing.T) {
	cases := []struct {
		err  error
		want string
	}{
		{fmt.Errorf("find: %w", store.ErrNoBucket), "push -init"},
		{fmt.Errorf("read: %w", fleet.ErrNoTable), "push -init"},
		{fmt.Errorf("x: %w", &account.Error{Which: account.ErrExpired, Advice: "log in again"}), "log in again"},
		{kind{errTimeout, advise(fmt.Errorf("x: %w", store.ErrDenied), "ours first")}, "ours first"},
	}
	for _, c := range cases {
		if got := hint(c.err); !strings.Contains(got, c.want) {
			t.Errorf("hint(%v) = %q, want something with %q", c.err, got, c.want)
		}
	}
	if got := hint(errors.New("unheard of")); got != "" {
		t.Errorf("hint for nothing: %q", got)
	}
}
