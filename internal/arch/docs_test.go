package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A row of the threat model that names a test is worth as much as that test: it must be there.
func TestTheTestsThatSecurityNamesAreThere(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)(/[^`]*)?`").FindAllStringSubmatch(string(text), -1)
	if len(named) < 30 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, n := range named {
		files, err := filepath.Glob("../" + n[1] + "/*_test.go")
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
		if !strings.Contains(all.String(), "func "+n[2]+"(") || !strings.Contains(all.String(), `"`+strings.TrimPrefix(n[3], "/")) {
			t.Errorf("docs/security.md names %s, which is not there", n[0])
		}
	}
}
