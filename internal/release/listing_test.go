package release

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCheckPathRefusesEachAttack(t *testing.T) {
	for path, want := range map[string]string{
		"":                                  `path: must not be empty`,
		"../x":                              `path "../x": has a part ".."`,
		"a/../../x":                         `path "a/../../x": has a part ".."`,
		"a/..":                              `path "a/..": has a part ".."`,
		"/etc/passwd":                       `path "/etc/passwd": must not be absolute`,
		".":                                 `path ".": has a part "."`,
		"a/./b":                             `path "a/./b": has a part "."`,
		"a//b":                              `path "a//b": has an empty part`,
		"a/":                                `path "a/": has an empty part`,
		"a\x00b":                            `path "a\x00b": has a control character`,
		"a\nb":                              `path "a\nb": has a control character`,
		"a\x7f":                             `path "a\x7f": has a control character`,
		`a\b`:                               `path "a\\b": has a backslash`,
		"a\xff":                             `path "a\xff": is not valid UTF-8`,
		strings.Repeat("a", 256):            `path "` + strings.Repeat("a", 120) + `"...: has a part longer than 255 bytes`,
		strings.Repeat("a/", 2048) + "a/bc": `path "` + strings.Repeat("a/", 60) + `"...: is longer than 4096 bytes`,
	} {
		if err := CheckPath(path); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", path, err, want)
		}
	}
}

func TestCheckPathTakesOrdinaryAndOddNames(t *testing.T) {
	for _, path := range []string{
		"index.php", "a/b/c.php", "...", "..a/b..", ".well-known/x", "a b/ü.txt", "-rf", "~", "a:b*?",
		strings.Repeat("a", 255), strings.Repeat("a/", 2047) + "ab",
	} {
		if err := CheckPath(path); err != nil {
			t.Errorf("refused: %v", err)
		}
	}
}

func TestCheckLinkTargetStaysInsideTheRelease(t *testing.T) {
	for _, ok := range [][2]string{{"a", "b"}, {"vendor/bin/x", "../pkg/bin/x"}, {"d/l", ".."}, {"d/l", "./../b"}, {"a/b/c", "../../x/y/"}} {
		if err := CheckLinkTarget(ok[0], ok[1]); err != nil {
			t.Errorf("%v refused: %v", ok, err)
		}
	}
	for _, bad := range [][2]string{
		{"a", ""},
		{"a", "/etc/passwd"},
		{"a", ".."},
		{"a", "../x"},
		{"d/l", "../../x"},
		{"a/b/c", "./.././../../x"},
		{"top", "p/q/link/../../.."},
		{"a", "b/../c"},
		{"a", "x\x00"},
		{"a", "x\n"},
		{"../a", "b"},
		{"a", strings.Repeat("x", 256)},
	} {
		var e *Error
		if err := CheckLinkTarget(bad[0], bad[1]); !errors.As(err, &e) {
			t.Errorf("%q accepted: %v", bad, err)
		}
	}
}

func FuzzCheckPath(f *testing.F) {
	for _, s := range []string{"index.php", "../x", "a//b", "a/./b", "/etc", "a\x00", `a\b`, "ü/é", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if CheckPath(path) != nil {
			return
		}
		for part := range strings.SplitSeq(path, "/") {
			if part == "" || part == "." || part == ".." || len(part) > 255 || strings.ContainsAny(part, "\x00\n\r\\") {
				t.Fatalf("accepted %q", path)
			}
		}
		if len(path) > 4096 {
			t.Fatalf("accepted %d bytes", len(path))
		}
	})
}

func TestListingDigestIsOfPathSizeAndETagInAnyOrder(t *testing.T) {
	l := Listing{{"b", 2, `"e2"`, time.Unix(1, 0)}, {"a/b", 1, "e1", time.Time{}}}
	// printf 'a/b\0001\000e1\nb\0002\000e2\n' | sha256sum
	const want = "07e9820265d9c6f06f2fd8749778badb87dff3f3695ffd1c27e05c4df13994e9"
	got := l.Digest()
	if got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	if l[0].Path != "b" {
		t.Error("the listing itself was sorted")
	}
	if (Listing{l[1], l[0]}).Digest() != got {
		t.Error("depends on the order")
	}
	for name, other := range map[string]Object{"path": {"c", 2, "e2", time.Time{}}, "size": {"b", 3, "e2", time.Time{}}, "etag": {"b", 2, "e3", time.Time{}}} {
		if (Listing{other, l[1]}).Digest() == got {
			t.Errorf("does not depend on the %s", name)
		}
	}
}

func TestListingCheck(t *testing.T) {
	for name, c := range map[string]struct {
		files int
		l     Listing
		want  string
	}{
		"good":           {3, Listing{{Path: "a/b"}, {Path: "a-b", Size: MaxFileSize}, {Path: "A/B"}}, ""},
		"one missing":    {2, Listing{{Path: "a"}}, "listing: has 1 files where the pointer says 2"},
		"one too many":   {1, Listing{{Path: "a"}, {Path: "b"}}, "listing: has 2 files where the pointer says 1"},
		"bad path":       {1, Listing{{Path: "../a"}}, `path "../a": has a part ".."`},
		"twice":          {2, Listing{{Path: "a"}, {Path: "a"}}, `path "a": is listed twice`},
		"file and dir":   {3, Listing{{Path: "a"}, {Path: "a-b"}, {Path: "a/b/c"}}, `path "a/b/c": needs a directory where "a" is a file`},
		"dir, then file": {2, Listing{{Path: "x/y/z"}, {Path: "x/y"}}, `path "x/y/z": needs a directory where "x/y" is a file`},
		"negative":       {1, Listing{{Path: "a", Size: -1}}, `path "a": has size -1, which must be 0 to 5 TiB`},
		"too large":      {1, Listing{{Path: "a", Size: 1 << 62}}, `path "a": has size 4611686018427387904, which must be 0 to 5 TiB`},
		"too many":       {MaxFiles + 1, make(Listing, MaxFiles+1), "listing: has more than 1000000 files"},
	} {
		err := c.l.Check(c.files)
		if got := errText(err); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestListingBytes(t *testing.T) {
	if got := (Listing{{Size: 5}, {Size: 7}}).Bytes(); got != 12 {
		t.Errorf("%d bytes", got)
	}
}

func TestIgnoreMeansWhatGitMeans(t *testing.T) {
	ig := NewIgnore([]string{
		"# comment", "", "*.log", "!keep.log", "/build", "doc/*.txt", "cache/", "**/tmp/x", "logs/**", "a/**/z",
		`\#hash`, `\!bang`, "trail  ", `kept\ `, "?.bak", "[!a-c].md", "[[:digit:]]x", `star\*`, "vendor", "!vendor/keep", "ü?", "lit.*", "[", "crlf\r",
		`n[a\-c]`,
	})
	for path, want := range map[string]bool{
		"x.log": true, "a/b/x.log": true, "keep.log": false, "a/keep.log": false,
		"build": true, "build/x": true, "a/build": false,
		"doc/a.txt": true, "doc/a/b.txt": false, "x/doc/a.txt": false,
		"cache": false, "cache/x": true, "a/cache/x": true,
		"tmp/x": true, "a/b/tmp/x": true, "tmp/y": false,
		"logs": false, "logs/a/b": true, "a/z": true, "a/b/c/z": true, "b/a/z": false,
		"#hash": true, "# comment": false, "!bang": true, "trail": true, "kept ": true, "kept": false,
		"x.bak": true, "xy.bak": false, "d.md": true, "a.md": false, "7x": true, "ax": false, "star*": true, "starx": false,
		"vendor/keep": true, "vendor/a/b": true, "üä": true, "lit.php": true, "litxphp": false, "[": false, "crlf": true,
		"n-": true, "na": true, "nb": false,
		".git": true, ".git/config": true, "sub/.git": true, "sub/.git/HEAD": true, ".gitignore": false, "index.php": false,
	} {
		if got := ig.Match(path, false); got != want {
			t.Errorf("file %q: ignored %v", path, got)
		}
	}
	if !ig.Match("cache", true) || !ig.Match("a/cache", true) {
		t.Error("a pattern for directories does not match one")
	}
}

func TestNothingTakesGitBackIn(t *testing.T) {
	ig := NewIgnore([]string{"!.git", "!/.git/config"})
	if !ig.Match(".git/config", false) || !ig.Match(".git", true) {
		t.Error(".git would be uploaded")
	}
}

func TestCheckPatternFindsMalformedOnes(t *testing.T) {
	for p, ok := range map[string]bool{"*.log": true, "": true, "# [": true, "[a-": false, "a/[": false, "[z-a]": false, `a\`: false, "[]]": true, "[[:nix:]]": false} {
		if err := CheckPattern(p); (err == nil) != ok {
			t.Errorf("%q: %v", p, err)
		}
	}
}
