package release

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const head = "2026-11-20_20-15-02\n1795205702\n2500"

func goldens(t testing.TB) map[string][]byte {
	names, err := filepath.Glob("testdata/*.pointer")
	if err != nil || len(names) < 3 {
		t.Fatalf("goldens: %v, %v", names, err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(name)] = text
	}
	return out
}

func TestGoldenPointersAreWrittenAsTheyWereRead(t *testing.T) {
	for name, text := range goldens(t) {
		p, err := ParsePointer(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := p.Text(); string(got) != string(text) {
			t.Errorf("%s: written as\n%s", name, got)
		}
	}
}

func TestPointerFieldsAreRead(t *testing.T) {
	full, err := ParsePointer(goldens(t)["full.pointer"])
	if err != nil {
		t.Fatal(err)
	}
	want := Pointer{
		Release: "2026-11-20_20-15-02", Sequence: 1795205702, Files: 2500, Scope: "my-deploy-bucket/promo-production",
		Manifest: &Content{"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", 182044},
		Delta: &Delta{
			"2026-11-19_08-00-00",
			Content{"60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752", 7311},
		},
		Commit: "0c7ac1d", Author: "Ada <ada@example.com>", Message: "fix the basket\nand \"quote\" it",
		Policy: Policy{[]string{"1", "25%", "cron:100%"}, 5 * time.Minute, true, "40%"},
	}
	if !reflect.DeepEqual(full, want) {
		t.Errorf("read as %+v", full)
	}
	if full.Plain() {
		t.Error("a pointer with a manifest is plain")
	}
}

func TestPlainPointerIsExactlyThreeLines(t *testing.T) {
	p := Pointer{Release: "2026-11-20_20-15-02", Sequence: 1795205702, Files: 2500}
	if got := string(p.Text()); got != head {
		t.Errorf("text is %q", got)
	}
	if !p.Plain() {
		t.Error("not plain")
	}
}

func TestPointerToleratesAFinalNewlineAndCRLF(t *testing.T) {
	for _, text := range []string{head + "\n", strings.ReplaceAll(head, "\n", "\r\n"), strings.ReplaceAll(head, "\n", "\r\n") + "\r\n"} {
		p, err := ParsePointer([]byte(text))
		if err != nil || string(p.Text()) != head {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestUnknownKeysAreKeptInOrder(t *testing.T) {
	text := head + "\nkind \"rollback\"\nzeta \"1\"\nalpha \"2\\nforged \\\"x\\\"\"\nzeta \"3\""
	p, err := ParsePointer([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Extra) != 3 || p.Extra[1] != (Setting{"alpha", "2\nforged \"x\""}) {
		t.Errorf("extra is %q", p.Extra)
	}
	if got := string(p.Text()); got != text {
		t.Errorf("written as %q", got)
	}
}

func TestAValueCannotBecomeALineOfItsOwn(t *testing.T) {
	p := Pointer{Release: "ab", Sequence: 1, Files: 1, Message: "x\"\nkind \"rollback\"\r\nscope \"y"}
	back, err := ParsePointer(p.Text())
	if err != nil || !reflect.DeepEqual(back, p) {
		t.Errorf("read back as %+v, %v", back, err)
	}
}

func TestPointerErrorsNameLineRuleAndValue(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    `pointer: has 1 lines, needs release, sequence and number of files`,
		"ab\n1":                               `pointer "ab\n1": has 2 lines, needs release, sequence and number of files`,
		"../x\n1\n1":                          `pointer line 1 "../x": release id must be 2 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or digit`,
		"m\n1\n1":                             `pointer line 1 "m": release id must be longer than one character`,
		"latest-deploy\n1\n1":                 `pointer line 1 "latest-deploy": release id is the name of the pointer`,
		"ab\n0\n1":                            `pointer line 2 "0": sequence must be a whole number above zero, in digits`,
		"ab\n+5\n1":                           `pointer line 2 "+5": sequence must be a whole number above zero, in digits`,
		"ab\n9223372036854775808\n1":          `pointer line 2 "9223372036854775808": sequence must be a whole number above zero, in digits`,
		"ab\n1\n0":                            `pointer line 3 "0": number of files must be a whole number above zero, in digits`,
		"ab\n1\n 1":                           `pointer line 3 " 1": number of files must be a whole number above zero, in digits`,
		"ab\n1\n1000001":                      `pointer line 3 "1000001": number of files must be at most 1000000`,
		head + "\n\n":                         `pointer line 4: must begin with a key of a-z 0-9 _`,
		head + "\nscope":                      `pointer line 4 "scope": needs one space and one double-quoted string after the key`,
		head + "\nscope  \"a\"":               `pointer line 4 "scope  \"a\"": needs one space and one double-quoted string after the key`,
		head + "\nscope `a`":                  "pointer line 4 \"scope `a`\": needs one space and one double-quoted string after the key",
		head + "\ncommit \"a\"\ncommit \"a\"": `pointer line 5 "commit \"a\"": says commit a second time`,
		head + "\nkind \"deploy\"":            `pointer line 4 "kind \"deploy\"": kind must be "rollback"`,
		head + "\nbake \"-5m\"":               `pointer line 4 "bake \"-5m\"": bake must be a time above zero such as "5m"`,
		head + "\napprove \"yes\"":            `pointer line 4 "approve \"yes\"": approve must be "true"`,
		head + "\nmax_excluded \"400%\"":      `pointer line 4 "max_excluded \"400%\"": must be at most 100%`,
		head + "\nwaves \"1,,2\"":             `pointer line 4 "waves \"1,,2\"": a wave must be a share above zero such as "1", "25%" or "cron:100%"`,
		head + "\nmanifest \"abc 1\"":         `pointer line 4 "manifest \"abc 1\"": needs a SHA-256 in lower-case hex and a length`,
		head + "\n\xff \"x\"":                 `pointer: is not valid UTF-8`,
		strings.Repeat("x", MaxPointer+1):     `pointer: is longer than 4096 bytes`,
		head + "\ndelta \"ab " + strings.Repeat("0", 64) + " 1\"": `pointer: has a delta without a manifest`,
	} {
		_, err := ParsePointer([]byte(text))
		var e *Error
		if !errors.As(err, &e) || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

func FuzzParsePointer(f *testing.F) {
	for _, text := range goldens(f) {
		f.Add(text)
	}
	f.Add([]byte(head + "\r\nkind \"rollback\"\r\nx \"\\xff\"\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePointer(text)
		if err != nil {
			return
		}
		back, err := ParsePointer(p.Text())
		if len(p.Text()) > MaxPointer {
			return // escapes are longer than what they stand for
		}
		if err != nil || !reflect.DeepEqual(back, p) {
			t.Fatalf("%q is written as %q and read back as %+v, %v", text, p.Text(), back, err)
		}
		if _, err := ParseID(string(p.Release)); err != nil || p.Sequence < 1 || p.Files < 1 {
			t.Fatalf("accepted %+v", p)
		}
	})
}
