package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
)

func TestMain(m *testing.M) {
	cache, err := os.MkdirTemp("", "push-cache-") // the scripts' pushes clean up, and note when
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_CACHE_HOME", cache)
	code := testenv.Run(m)
	os.RemoveAll(cache)
	os.Exit(code)
}

// TestScripts runs the command as a user does, in the plain layout where nothing else is said. In the scripts, besides the usual:
//
//	push CODE ARGS…     run push; it must exit with CODE
//	made                create bucket and table, empty
//	objects             list the keys below the site
//	put KEY FILE        write an object below the site
//	json PATH VALUE     the last output, as JSON, has VALUE at PATH
//	committed [open|bad]   write a head that has committed to the pointer's release, and its log; or an open one, or one whose wave failed
//	member ID VER NUM [AGE]   an instance of version VER and schema NUM has registered, AGE ago; 0: it knows only the plain layout
func TestScripts(t *testing.T) {
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			name := testenv.Name(t)
			e.Setenv("BUCKET", name)
			e.Setenv("S3", s3.Endpoint)
			e.Setenv("DIR", filepath.Join(s3.Dir, name))
			config := fmt.Sprintf("site: shop\nbucket: %s\ntable: %s\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\nlayout: plain\n",
				name, name, s3.Endpoint, dynamo)
			return os.WriteFile(filepath.Join(e.WorkDir, "config.yml"), []byte(config), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"push": cmdPush, "made": cmdMade, "objects": cmdObjects, "put": cmdPut, "json": cmdJSON,
			"committed": cmdCommitted, "member": cmdMember,
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
	return table.NewDynamo(table.Options{Config: aws, Endpoint: endpoint, Name: ts.Getenv("BUCKET"), Timeout: 30 * time.Second})
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

// cmdCommitted moves the head through one epoch to the pointer's release.
func cmdCommitted(ts *testscript.TestScript, _ bool, args []string) {
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
	if !h.State.Open() {
		h, err = l.Open(ctx, h, note, "i-1", false)
		ts.Check(err)
	}
	switch strings.Join(args, " ") {
	case "open":
		return
	case "bad":
		_, err = l.Decide(ctx, h, fleet.Outcome{Bad: true, Reason: "wave 1: 500", Members: 1})
		ts.Check(err)
		return
	}
	h, err = l.Decide(ctx, h, fleet.Outcome{Commit: true, Members: 1})
	ts.Check(err)
	h, err = l.Done(ctx, h, true, "")
	ts.Check(err)
	_, err = l.PutLog(ctx, fleet.Log{
		Epoch: h.Epoch, Outcome: "done", Kind: h.Kind, Release: h.Release, Sequence: h.Sequence,
	}, time.Now())
	ts.Check(err)
}

// aged is a table to which items of another schema are written.
type aged struct {
	fleet.Table
	schema int64
}

func (a aged) Write(ctx context.Context, key fleet.Key, w fleet.Write) (fleet.Item, error) {
	w.Set["schema"] = a.schema
	w.Set["packed"] = a.schema > 0
	return a.Table.Write(ctx, key, w)
}

func cmdMember(ts *testscript.TestScript, _ bool, args []string) {
	schema, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	age := time.Duration(0)
	if len(args) > 3 {
		age, err = time.ParseDuration(args[3])
		ts.Check(err)
	}
	l := fleet.NewLedger(aged{scriptTable(ts), schema}, ts.Getenv("BUCKET")+"/shop", func() string { return args[0] + args[1] })
	ts.Check(l.Register(context.Background(), fleet.Member{
		Instance: args[0], Version: args[1], Incarnation: args[0] + args[1], Phase: fleet.Serve, Seen: time.Now().Add(-age).Unix(),
	}))
}

func TestCredentialsThatAreWrongAreNoMissingPermission(t *testing.T) {
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	dir, bucket := t.TempDir(), s3.NewBucket(t)
	settings := fmt.Sprintf("site: shop\nbucket: %s\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\n", bucket, s3.Endpoint, dynamo)
	file, app := filepath.Join(dir, "config.yml"), filepath.Join(dir, "app")
	if err := errors.Join(os.Mkdir(app, 0o755), os.WriteFile(filepath.Join(app, "x"), nil, 0o644),
		os.WriteFile(file, []byte(settings), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), []string{"-config=" + file, "-deploy=" + app}, strings.NewReader(""), &stdout, &stderr)
	said := stderr.String()
	if code != exitFailed || !strings.Contains(said, "push: hint: the access key or its secret is wrong") {
		t.Errorf("exit code %d, %s", code, said)
	}
	if strings.Contains(said, "permission") || strings.Contains(said, "first line") {
		t.Errorf("there is no account in the first line, and no permission helps: %s", said)
	}
}

func TestCheckNamesEachPermissionThatIsDenied(t *testing.T) {
	denied, file := testenv.Denied(t), filepath.Join(t.TempDir(), "config.yml")
	settings := fmt.Sprintf("site: shop\nbucket: my-bucket\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\n", denied, denied)
	if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := Main(t.Context(), []string{"-config=" + file, "-check"}, strings.NewReader(""), &stdout, &stderr); code != exitFailed {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	for _, what := range []string{
		"bucket my-bucket: reach it", "bucket my-bucket: read the pointer (s3:GetObject)", "bucket my-bucket: list (s3:ListBucket)",
		"table s3-pull-deploy: read the head (dynamodb:GetItem)", "table s3-pull-deploy: read the members (dynamodb:Query)",
	} {
		if !regexp.MustCompile(`(?m)^fail  ` + regexp.QuoteMeta(what) + `: .*denied.*\n      hint: ` + regexp.QuoteMeta(curePush) + `$`).MatchString(stdout.String()) {
			t.Errorf("no %q with its cure in\n%s", what, stdout.String())
		}
	}
}

func TestCheckNamesEachWriteThatIsDenied(t *testing.T) {
	s3, dynamo, denied := testenv.S3(t), testenv.DynamoDB(t), testenv.Denied(t)
	bucket, dir := s3.NewBucket(t), t.TempDir()
	var forbidden string // method and condition of what is denied, or the action
	to := func(address string) http.Handler {
		target, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		return &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Host = p.In.Host // it is signed
		}}
	}
	toS3, toTable, toNobody := to(s3.Endpoint), to(dynamo), to(denied)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, action, table := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		switch {
		case action != "" && action == forbidden,
			r.Method+" If-Match" == forbidden && r.Header.Get("If-Match") != "",
			r.Method+" If-None-Match" == forbidden && r.Header.Get("If-None-Match") != "":
			toNobody.ServeHTTP(w, r)
		case table:
			toTable.ServeHTTP(w, r)
		default:
			toS3.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	file, app := filepath.Join(dir, "config.yml"), filepath.Join(dir, "app")
	settings := fmt.Sprintf("site: shop\nbucket: %[1]s\ntable: %[1]s\nendpoints: {s3: %[2]q, dynamodb: %[2]q}\nregion: us-east-1\nkms_key_id: alias/deploy\n", bucket, front.URL)
	if err := errors.Join(os.Mkdir(app, 0o755), os.WriteFile(filepath.Join(app, "x"), nil, 0o644), os.WriteFile(file, []byte(settings), 0o644)); err != nil {
		t.Fatal(err)
	}
	run := func(verb string, want int) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := Main(t.Context(), []string{"-config=" + file, verb}, strings.NewReader(""), &stdout, &stderr); code != want {
			t.Fatalf("%s without %q: exit code %d: %s%s", verb, forbidden, code, &stdout, &stderr)
		}
		return stdout.String()
	}
	aws, err := account.Load(t.Context(), account.Options{OwnEndpoints: true})
	if err == nil {
		_, err = table.NewDynamo(table.Options{Config: aws, Endpoint: dynamo, Name: bucket, Timeout: 30 * time.Second}).Init(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	writes := map[string]string{
		"PUT If-Match":      "bucket " + bucket + ": replace the pointer (s3:PutObject, If-Match)",
		"PUT If-None-Match": "bucket " + bucket + ": write what is not there (s3:PutObject, If-None-Match)",
		"DELETE If-Match":   "bucket " + bucket + ": clean up (s3:DeleteObject)",
		"UpdateItem":        "table " + bucket + ": write (dynamodb:UpdateItem)",
	}
	each := func(tried map[string]string) {
		t.Helper()
		for request, what := range tried {
			forbidden = request
			said := run("-check", exitFailed)
			if strings.Count(said, "\nfail  ") != 1 || !regexp.MustCompile(`(?m)^fail  `+regexp.QuoteMeta(what)+`: .*denied.*\n      hint: `+regexp.QuoteMeta(curePush)+`$`).MatchString(said) {
				t.Errorf("without %s not this one line with its cure, %q, in\n%s", request, what, said)
			}
		}
		forbidden = ""
		said := run("-check", exitDone)
		for _, what := range tried {
			if !strings.Contains(said, "ok    "+what+"\n") {
				t.Errorf("no %q in\n%s", what, said)
			}
		}
		if !strings.Contains(said, "skip  key alias/deploy: encrypt (kms:GenerateDataKey): not tried") {
			t.Errorf("nothing says that the key was not tried:\n%s", said)
		}
	}
	once := writes["PUT If-None-Match"]
	delete(writes, "PUT If-None-Match")
	each(writes) // before the first push
	if said := run("-check", exitDone); !strings.Contains(said, "skip  "+once+": not tried, nothing was pushed yet\n      hint: ") {
		t.Errorf("nothing says that one write was not tried:\n%s", said)
	}
	if left, err := os.ReadDir(filepath.Join(s3.Dir, bucket, "shop")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the check left %v, %v", left, err)
	}
	run("-deploy="+app, exitDone)
	before, _ := os.ReadFile(filepath.Join(s3.Dir, bucket, "shop", "latest-deploy"))
	writes["PUT If-None-Match"] = once
	each(writes)
	if after, err := os.ReadFile(filepath.Join(s3.Dir, bucket, "shop", "latest-deploy")); err != nil || len(before) == 0 || !bytes.Equal(after, before) {
		t.Errorf("the pointer was %q, is %q, %v", before, after, err)
	}
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
		{fmt.Errorf("x: %w", store.ErrDenied), "permission on the bucket"},
		{fmt.Errorf("x: %w: InvalidSignatureException: Signature expired", fleet.ErrDenied), "clock"},
		{fmt.Errorf("x: %w: InvalidAccessKeyId: none", store.ErrDenied), "access key"},
		{&config.Error{File: "f", Rule: "unknown key", Hint: "did you mean"}, "did you mean"},
		{&config.Error{File: "f", Rule: "unknown key"}, "config.sample.yml"},
	}
	for _, c := range cases {
		if got := hint(c.err); !strings.Contains(got, c.want) {
			t.Errorf("hint(%v) = %q, want something with %q", c.err, got, c.want)
		}
	}
	if got := hint(errors.New("x: SignatureDoesNotMatch")); got != "" {
		t.Errorf("hint for a text that is no refusal: %q", got)
	}
	if got := hint(errors.New("unheard of")); got != "" {
		t.Errorf("hint for nothing: %q", got)
	}
}

func TestComplaintsHaveALineForEachErrorAndItsAdvice(t *testing.T) {
	wrong := errors.Join(&config.Error{File: "f", Line: 3, Path: "roto", Rule: "unknown key", Hint: "did you mean `root`?"},
		&config.Error{File: "f", Path: "site", Rule: "is required", Hint: "such as"})
	cases := map[string]error{
		"push: f:3: roto: unknown key\npush: hint: did you mean `root`?\npush: f: site: is required\npush: hint: such as\n": kind{errUsage, wrong},
		"push: a\npush: hint: b\n": kind{errConflict, advise(errors.New("a"), "b")},
		"push: read head: table does not exist\npush: hint: " + hint(fleet.ErrNoTable) + "\n": fmt.Errorf("read head: %w: %w",
			fleet.ErrNoTable, errors.New("ResourceNotFoundException: Cannot do operations on a non-existent table")),
		"push: a: b\npush: c\n": errors.Join(fmt.Errorf("a: %w", errors.New("b")), errors.New("c")),
	}
	for want, err := range cases {
		var got bytes.Buffer
		if complain(&got, err); got.String() != want {
			t.Errorf("%q, want %q", &got, want)
		}
	}
}

func TestALineOfAReleaseThatFailedItsCheckDoesNotSayLive(t *testing.T) {
	cases := map[string]*Result{
		"R is flipped to, and 2 of 2 instances failed the check: n1, n2":         {Without: []string{"n1", "n2"}, Failed: []string{"n1", "n2"}},
		"R is flipped to, and 1 of 3 instances failed the check: n1, without n4": {Members: 2, Without: []string{"n1", "n4"}, Failed: []string{"n1"}},
		"R is flipped to, and it is served by 0 instances, without n1":           {Without: []string{"n1"}},
	}
	for want, r := range cases {
		r.Release, r.Outcome, r.unhealthy, r.Excluded = "R", Done, true, len(r.Without)
		if got := r.line(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	well := &Result{Release: "R", Outcome: Done, Members: 9, Excluded: 1, Without: []string{"n1"}, Failed: []string{"n1"}}
	if got := well.line(); !strings.HasPrefix(got, "R is live: ") || !strings.HasSuffix(got, ", without n1") {
		t.Errorf("few enough failed: %q", got)
	}
}
