package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"s3pulldeploy/internal/version"
)

func TestEveryModuleOfABinaryIsListedOnceWithItsSum(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&out, &again} {
		if err := write(w, "1.2", []string{self, self}); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != again.String() {
		t.Error("the same binary gives other bytes")
	}
	var doc document
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil || doc.Format != "CycloneDX" || doc.Metadata.Component.Version != "1.2" {
		t.Fatalf("%v: %s", err, out.String())
	}
	b, err := version.File("1.2", self)
	if err != nil || b.Go == "" {
		t.Fatal(b, err)
	}
	for _, m := range append(b.Modules, version.Module{Path: "std", Version: b.Go}) {
		if n := strings.Count(out.String(), `"purl": "pkg:golang/`+m.Path+"@"+m.Version+`"`); n != 1 {
			t.Errorf("%s is listed %d times", m.Path, n)
		}
	}
	if err := write(&out, "1.2", []string{"main_test.go"}); err == nil {
		t.Error("what is no binary has a list of materials")
	}
}
