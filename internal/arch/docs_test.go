package arch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A row that names a test is worth as much as that test: it must be there.
func TestTheTestsThatTheDocsNameAreThere(t *testing.T) {
	named := regexp.MustCompile("`(?:([a-z0-9]+)\\.)?((?:Test|Fuzz)[A-Za-z0-9]+)(/[^`]*)?`")
	for doc, least := range map[string]int{"security.md": 30, "protocol.md": 100, "development.md": 5} {
		text, err := os.ReadFile("../../docs/" + doc)
		if err != nil {
			t.Fatal(err)
		}
		found := named.FindAllStringSubmatch(string(text), -1)
		if len(found) < least {
			t.Errorf("docs/%s names only %d tests", doc, len(found))
		}
		for _, n := range found {
			code := testsOf(t, n[1])
			if !strings.Contains(code, "func "+n[2]+"(") || !strings.Contains(code, `"`+strings.TrimPrefix(n[3], "/")) {
				t.Errorf("docs/%s names %s, which is not there", doc, n[0])
			}
		}
	}
}

var testCode = map[string]string{} // by package

// testsOf is the code of a package's tests; of all packages where none is named.
func testsOf(t *testing.T, pkg string) string {
	if code, ok := testCode[pkg]; ok {
		return code
	}
	below := pkg
	if pkg == "" {
		below = "*"
	}
	files, err := filepath.Glob("../" + below + "/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		code, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(code)
	}
	testCode[pkg] = all.String()
	return testCode[pkg]
}

// Each fault of the matrix has a row, and each row a test.
func TestEachFaultHasATest(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, faults, _ := strings.Cut(string(text), "\n## Faults\n")
	rows := map[string]bool{}
	for line := range strings.Lines(faults) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], "---") || strings.Contains(line, "shown by") {
			continue
		}
		for _, number := range strings.Split(strings.TrimSpace(cells[1]), ", ") {
			rows[number] = true
		}
		if !strings.Contains(cells[4], "`") {
			t.Errorf("no test is named in %q", line)
		}
	}
	for n := 1; n <= 44; n++ {
		if number := "F" + strconv.Itoa(n); !rows[number] {
			t.Errorf("%s has no row", number)
		}
	}
}

// untested are the rows of the threat model that need no test of their own, and why.
var untested = map[string]string{
	"T10": "says what nothing stops", "T11": "says what nothing stops", "T12": "the table of hostile releases",
	"T14": "T7's, and what nothing stops", "T15": "TLS is the SDK's, the signature T1's", "T20": "AWS's logs, and people's approval",
}

func TestEveryRowOfTheThreatModelNamesATestOrSaysWhatDoesNotStopIt(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| ") && len(cells) > 2 {
			for id := range strings.SplitSeq(strings.TrimPrefix(cells[0], "| "), " to ") {
				rows[id] = line
			}
		}
	}
	rows["F48"] = rows["F47"] // one row, up to F49
	names := regexp.MustCompile("`[a-z0-9]+\\.(Test|Fuzz)[A-Za-z0-9]+")
	for kind, span := range map[string][2]int{"T": {1, 20}, "F": {45, 56}} {
		for n := span[0]; n <= span[1]; n++ {
			id := fmt.Sprint(kind, n)
			switch row, ok := rows[id]; {
			case !ok:
				t.Errorf("docs/security.md has no row %s", id)
			case names.MatchString(row) == (untested[id] != ""):
				t.Errorf("row %s of docs/security.md names a test: %v; it is one that needs none: %v", id, names.MatchString(row), untested[id] != "")
			}
		}
	}
}

// What fuzzing has found worth keeping is tried by every `go test`, and is what the next run begins with.
func TestEachFuzzTargetHasACorpusAndEachCorpusATarget(t *testing.T) {
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, f := range files {
		code, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`).FindAllStringSubmatch(string(code), -1) {
			corpus := filepath.Join(filepath.Dir(f), "testdata/fuzz", m[1])
			targets[corpus] = true
			if kept, err := os.ReadDir(corpus); err != nil || len(kept) == 0 {
				t.Errorf("%s has %d inputs, %v", corpus, len(kept), err)
			}
		}
	}
	corpora, err := filepath.Glob("../*/testdata/fuzz/*")
	if err != nil || len(targets) < 15 {
		t.Errorf("%d fuzz targets, %v", len(targets), err)
	}
	for _, c := range corpora {
		if !targets[c] {
			t.Errorf("%s is of no target", c)
		}
	}
}
