// Package arch holds the rules on who may import whom, as a test that says why each rule is there.
//
// Imports run one way: cmd -> agent, push -> the leaves. An outside module that ties us to somebody (an
// SDK, a scheduler, a parser) has one owner, which is where its types and errors end. Rules bind what
// is built; tests may play the outside world with whatever they like. A package without a rule is a
// violation too: who adds one says here what it may know.
package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "s3pulldeploy/"

// leaves are what agent and push are wired from.
var leaves = []string{
	"internal/account", "internal/config", "internal/disk", "internal/failpoint", "internal/fleet", "internal/hook",
	"internal/instance", "internal/notify", "internal/php", "internal/release", "internal/store", "internal/table", "internal/version",
	"internal/weak",
}

// layers says which of our packages a package may import, and why no others.
var layers = map[string]struct {
	may []string
	why string
}{
	"cmd/agent": {[]string{"internal/agent", "internal/config"}, "a command translates flags, signals and exit codes; the work is in its package"},
	"cmd/push":  {[]string{"internal/push", "internal/config"}, "a command translates flags, signals and exit codes; the work is in its package"},

	"internal/agent": {leaves, "the agent wires the leaves; it and push meet only in the bucket and the table"},
	"internal/push":  {leaves, "push wires the leaves; it must not know the agent's internals"},

	"internal/account":   {nil, "credentials serve every client alike and know none of them"},
	"internal/config":    {[]string{"internal/release"}, "settings are read before anything else exists; only names are checked by release's rules"},
	"internal/disk":      {[]string{"internal/failpoint", "internal/release", "internal/weak"}, "the disk keeps what others fetched and decided: it knows no S3, table or protocol"},
	"internal/fleet":     {[]string{"internal/failpoint", "internal/release", "internal/weak"}, "the protocol is judged on its small table interface and simulated without S3, disks and PHP"},
	"internal/failpoint": {nil, "a step is named by who takes it; what breaks there knows nothing of it"},
	"internal/hook":      {nil, "a hook is a command with a deadline; what its failure means is the caller's"},
	"internal/instance":  {nil, "who and where this machine is does not depend on what runs on it"},
	"internal/notify":    {nil, "a notification carries an outcome and decides nothing"},
	"internal/php":       {nil, "opcache and health are about what is served, not about where it came from"},
	"internal/release":   {nil, "formats and names are pure: every other package may depend on them"},
	"internal/store":     {[]string{"internal/release"}, "the bucket is spoken to in terms of releases; it knows no local directory and no fleet"},
	"internal/table":     {[]string{"internal/fleet"}, "the adapter implements the interface that fleet defines, and nothing depends on the adapter"},

	"internal/version": {nil, "what a binary is made of is known to the toolchain, not to us"},

	"internal/table/tabletest": {[]string{"internal/fleet"}, "the conformance suite tests the interface, so that every table can run it"},

	"internal/weak": {nil, "a rule is named by who keeps it; what happens without it is shown by the simulation"},

	"internal/arch":          {nil, "the rules are about all packages and belong to none"},
	"internal/e2e":           {nil, "the built commands are tested from outside"},
	"internal/systemtest":    {nil, "a booted fleet is tested from outside"},
	"internal/benchfleet":    {nil, "fleets are measured by tests, and shipped code must not lean on them"},
	"internal/sim":           {nil, "the simulation is made of tests, and shipped code must not lean on it"},
	"internal/benchswitch":   {[]string{"internal/php", "internal/testenv/parts"}, "the bench measures the built commands from outside; it only asks opcache what it holds"},
	"internal/sbom":          {[]string{"internal/version"}, "the list of materials is of binaries, whatever they do"},
	"internal/demo":          {[]string{"internal/testenv/parts"}, "the demo shows the built commands as a user runs them, from outside"},
	"internal/bench":         {[]string{"internal/account", "internal/agent", "internal/config", "internal/disk", "internal/store", "internal/testenv/parts"}, "the bench runs the built push and the agent's own steps, and otherwise looks from outside"},
	"internal/testenv":       {[]string{"internal/testenv/parts"}, "the parts of tests must be usable from every package's tests"},
	"internal/testenv/parts": {nil, "starting servers is the same for tests and the demo"},
}

// owners says who alone may import a module or package (or what is below it), and why.
var owners = []struct {
	imported string
	by       []string
	why      string
}{
	{"github.com/aws/aws-sdk-go-v2/service/s3", []string{"internal/store"}, "S3's SDK and its errors end in store"},
	{"github.com/aws/aws-sdk-go-v2/feature/s3", []string{"internal/store"}, "S3's SDK and its errors end in store"},
	{"github.com/aws/aws-sdk-go-v2/service/dynamodb", []string{"internal/table"}, "DynamoDB's SDK ends in table; above it there are items and conditions"},
	{"github.com/aws/aws-sdk-go-v2/feature/dynamodb", []string{"internal/table"}, "DynamoDB's SDK ends in table; above it there are items and conditions"},
	{"github.com/aws/aws-sdk-go-v2/service/sns", []string{"internal/notify"}, "only a notification is published"},
	{"github.com/aws/aws-sdk-go-v2/feature/ec2/imds", []string{"internal/instance"}, "only instance asks the machine who it is"},
	{"github.com/aws/aws-sdk-go-v2/service/autoscaling", []string{"internal/instance"}, "only instance speaks of lifecycles"},
	{"github.com/aws/aws-sdk-go-v2/service/sts", []string{"internal/account"}, "one place knows who we are"},
	{"github.com/aws/aws-sdk-go-v2/config", []string{"internal/account"}, "one credentials and region chain for all clients"},
	{"github.com/aws/aws-sdk-go-v2/credentials", []string{"internal/account"}, "one credentials and region chain for all clients"},
	{
		"github.com/aws/aws-sdk-go-v2/aws",
		[]string{"internal/account", "internal/store", "internal/table", "internal/instance", "internal/notify", "internal/agent", "internal/push"},
		"aws.Config is passed from account to the adapters by who wires them, and seen by nobody else",
	},
	{
		"github.com/aws/smithy-go",
		[]string{"internal/account", "internal/store", "internal/table", "internal/instance", "internal/notify"},
		"the SDK's errors and middleware end at the edge: above it there are sentinels of ours",
	},
	{"github.com/go-co-op/gocron", []string{"internal/agent"}, "only the daemon has a schedule"},
	{"github.com/coreos/go-systemd", []string{"internal/agent"}, "only the daemon runs under systemd"},
	{"github.com/godbus/dbus", []string{"internal/agent"}, "only the daemon runs under systemd"},
	{"github.com/fsnotify/fsnotify", []string{"internal/config"}, "what is watched is the settings file"},
	{"gopkg.in/yaml.v3", []string{"internal/config"}, "one strict decoder; YAML is nobody else's format"},
	{
		"os/exec",
		[]string{"internal/hook", "internal/testenv", "internal/testenv/parts", "internal/demo", "internal/bench"},
		"every command that we run has hook's timeout, process group, user and captured output",
	},
	{"testing", []string{"internal/testenv", "internal/table/tabletest"}, "test support must not be linked into what is installed"},
}

// pure says what packages that are judged by reading and simulation must not touch.
var pure = []struct {
	pkg       string
	forbidden []string
	why       string
}{
	{"internal/release", []string{"net", "net/http", "log", "log/slog"}, "release is pure: no network, no logging"},
	{"internal/fleet", []string{"net", "net/http", "os"}, "fleet is simulated: its only outside is the table and what it is handed"},
}

// vague are package names that say nothing and so attract everything.
var vague = []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "base", "lib"}

// mainLines bounds a command's files: beyond it, work has crept in.
const mainLines = 60

func TestImportsRunOneWay(t *testing.T) {
	broken, err := check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range broken {
		t.Error(b)
	}
}

func TestEachKindOfRuleCanFail(t *testing.T) {
	long := strings.Repeat("// more\n", mainLines)
	tree := fstest.MapFS{
		"cmd/agent/main.go":        source("main", module+"internal/agent", module+"internal/store"),
		"cmd/push/main.go":         {Data: []byte("package main\n" + long)},
		"internal/agent/a.go":      source("agent", module+"internal/push"),
		"internal/agent/a_test.go": source("agent", "os/exec", module+"internal/testenv"),
		"internal/disk/d.go":       source("disk", module+"internal/store", module+"internal/release"),
		"internal/fleet/f.go":      source("fleet", "github.com/aws/smithy-go/middleware", "os"),
		"internal/release/r.go":    source("release", "log/slog", "net/url"),
		"internal/push/p.go":       source("push", "github.com/aws/aws-sdk-go-v2/service/s3/types", "os/exec"),
		"internal/store/s.go":      source("store", "github.com/aws/aws-sdk-go-v2/service/s3", module+"internal/testenv"),
		"internal/common/c.go":     source("common"),
		"testdata/x.go":            {Data: []byte("not Go")},
		".tools/x.go":              {Data: []byte("not Go")},
	}
	want := []string{
		"cmd/agent/main.go imports internal/store",
		"cmd/push/main.go has 61 lines",
		"internal/agent/a.go imports internal/push",
		"internal/common has no rule",
		"internal/common has a vague name",
		"internal/disk/d.go imports internal/store",
		"internal/fleet/f.go imports github.com/aws/smithy-go/middleware",
		"internal/fleet/f.go imports os",
		"internal/push/p.go imports github.com/aws/aws-sdk-go-v2/service/s3/types",
		"internal/push/p.go imports os/exec",
		"internal/release/r.go imports log/slog",
		"internal/store/s.go imports internal/testenv",
	}
	broken, err := check(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		found := slices.ContainsFunc(broken, func(b string) bool { return strings.HasPrefix(b, w+":") })
		if !found {
			t.Errorf("not found: %s", w)
		}
	}
	if len(broken) != len(want) {
		t.Errorf("%d violations, want %d:\n%s", len(broken), len(want), strings.Join(broken, "\n"))
	}
}

// source is a Go file with nothing but imports.
func source(pkg string, imports ...string) *fstest.MapFile {
	var b bytes.Buffer
	fmt.Fprintf(&b, "package %s\n", pkg)
	for _, i := range imports {
		fmt.Fprintf(&b, "import _ %q\n", i)
	}
	return &fstest.MapFile{Data: b.Bytes()}
}

// check returns the violations in a module's tree, each as "who does what: why not".
func check(tree fs.FS) ([]string, error) {
	var broken []string
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "dist"):
			return fs.SkipDir
		case d.IsDir():
			broken = append(broken, checkDir(tree, name)...)
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"):
			found, err := checkFile(tree, name)
			broken = append(broken, found...)
			return err
		}
		return nil
	})
	return broken, err
}

// checkDir judges a folder's name and that it has a rule, if it holds Go files.
func checkDir(tree fs.FS, dir string) []string {
	files, _ := fs.Glob(tree, path.Join(dir, "*.go"))
	if len(files) == 0 {
		return nil
	}
	var broken []string
	if slices.Contains(vague, path.Base(dir)) {
		broken = append(broken, dir+" has a vague name: a package is one noun that says what it owns")
	}
	if _, ok := layers[dir]; !ok {
		broken = append(broken, dir+" has no rule: add it to layers, with what it may import and why")
	}
	return broken
}

// checkFile judges one file's imports, and a command's length.
func checkFile(tree fs.FS, name string) ([]string, error) {
	src, err := fs.ReadFile(tree, name)
	if err != nil {
		return nil, err
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var broken []string
	if lines := bytes.Count(src, []byte("\n")); strings.HasPrefix(name, "cmd/") && lines > mainLines {
		broken = append(broken, fmt.Sprintf("%s has %d lines: a command translates, at most %d do", name, lines, mainLines))
	}
	for _, spec := range file.Imports {
		for _, why := range judge(path.Dir(name), spec) {
			imported, _ := strconv.Unquote(spec.Path.Value)
			broken = append(broken, fmt.Sprintf("%s imports %s: %s", name, strings.TrimPrefix(imported, module), why))
		}
	}
	return broken, nil
}

// judge returns the reasons why pkg must not have this import.
func judge(pkg string, spec *ast.ImportSpec) []string {
	imported, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return []string{err.Error()}
	}
	var reasons []string
	if ours, ok := strings.CutPrefix(imported, module); ok {
		if layer, ok := layers[pkg]; ok && !slices.Contains(layer.may, ours) {
			reasons = append(reasons, layer.why)
		}
	}
	for _, o := range owners {
		if below(imported, o.imported) && !slices.Contains(o.by, pkg) {
			reasons = append(reasons, o.why)
		}
	}
	for _, p := range pure {
		if p.pkg == pkg && slices.Contains(p.forbidden, imported) {
			reasons = append(reasons, p.why)
		}
	}
	return reasons
}

// below says whether an import path is parent or something in it.
func below(imported, parent string) bool {
	return imported == parent || strings.HasPrefix(imported, parent+"/")
}
