package push

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"s3pulldeploy/internal/config"
)

// settings is the settings file that this push runs with, to be known again in a tree.
type settings struct {
	*config.Config
	info fs.FileInfo // nil when the file cannot be looked at
	text []byte      // nil also of a pipe, which can be read only once
}

func settingsOf(c *config.Config) *settings {
	s := &settings{Config: c}
	info, err := os.Stat(c.Path)
	if err != nil {
		return s
	}
	s.info = info
	if info.Mode().IsRegular() {
		s.text, _ = os.ReadFile(c.Path)
	}
	return s
}

// settings says whether a file of the tree is this push's settings or a copy of them. It warns of other settings for
// the same site, such as an instance's: those it cannot tell from a file that the application wants.
func (s *scanner) settings(name string, in io.Reader, info fs.FileInfo) (same bool, err error) {
	if s.config.info != nil && os.SameFile(s.config.info, info) {
		return true, nil
	}
	ext := path.Ext(name)
	yaml := (ext == ".yml" || ext == ".yaml") && info.Size() <= config.MaxFile
	copied := len(s.config.text) > 0 && info.Size() == int64(len(s.config.text))
	if !yaml && !copied {
		return false, nil
	}
	text, err := io.ReadAll(io.LimitReader(in, config.MaxFile))
	if err != nil {
		return false, fmt.Errorf("read %q: %w", name, errors.Unwrap(err))
	}
	if copied && bytes.Equal(text, s.config.text) {
		return true, nil
	}
	if c, err := config.Parse(text, s.config.Path, config.ForPush, os.LookupEnv); yaml && err == nil &&
		c.Site == s.config.Site && c.Bucket == s.config.Bucket {
		s.tree.Warnings = append(s.tree.Warnings,
			fmt.Sprintf("%q is a settings file of %s and goes into the release: put it into %s", name, c.Site, ignoreFile))
	}
	return false, nil
}

// secrets looks for private keys and .env files, as the setting says.
func (s *scanner) secrets(mode string) error {
	if mode == config.Allow {
		return nil
	}
	var found []string
	for _, f := range s.tree.Files {
		what, err := s.secret(f)
		if err != nil {
			return err
		}
		if what != "" {
			found = append(found, fmt.Sprintf("%q %s", f.Path, what))
		}
	}
	if mode == config.Warn {
		s.tree.Warnings = append(s.tree.Warnings, found...)
		return nil
	}
	if len(found) == 0 {
		return nil
	}
	more := ""
	if n := len(found); n > 3 {
		found, more = found[:3], fmt.Sprintf(" and %d more", n-3)
	}
	return advise(fmt.Errorf("%s%s", strings.Join(found, ", "), more),
		"put it into "+ignoreFile+"; if it belongs into every release, set `secrets: warn` or `secrets: allow`")
}

// keyName is how files are called that are looked into for a private key to the end, in any case of letters, and keyMarks what
// gives one away: PEM and OpenSSH, PuTTY, and what -keygen writes.
var (
	keyName  = regexp.MustCompile(`(?i)\.(pem|key|p8|ppk)$|^id_|_(rsa|dsa|ecdsa|ed25519)$`)
	keyMarks = []string{"PRIVATE KEY-----", puttyKey, ownKey}
)

const (
	puttyKey = "PuTTY-User-Key-File-"
	ownKey   = "PRIVATE+KEY+"

	keyHead = 4 << 10  // where a file of any name is looked into for a key
	keyFile = 64 << 10 // and up to which size: keys are small
)

// A key in a file of any name is more than its first line, which programs that read keys have too: the key itself follows, perhaps
// behind headers, on lines or in one text of JSON. In manual is where libraries show keys that are none.
var (
	keyBlock = regexp.MustCompile(`-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\s|\\r|\\n|[A-Za-z-]+: [^\n]*\n)+[A-Za-z0-9+/]{32}`)
	manual   = regexp.MustCompile(`(?i)\.(md|markdown|rst|html?)$`)
)

// holdsKey says whether a small file of any name begins as one with a private key does; head are its first keyHead bytes.
func holdsKey(name string, head []byte) bool {
	if bytes.HasPrefix(head, []byte(puttyKey)) || bytes.HasPrefix(head, []byte(ownKey)) {
		return true
	}
	return bytes.Contains(head, []byte("PRIVATE KEY")) && keyBlock.Match(head) && !manual.MatchString(name)
}

const isKey = "is a private key"

// secret says what secret a file looks like, or "".
func (s *scanner) secret(f File) (string, error) {
	base := path.Base(f.Path)
	if suffix, ok := strings.CutPrefix(strings.ToLower(base), ".env"); ok {
		switch suffix {
		case ".example", ".dist", ".sample", ".template": // made to be seen
			return "", nil
		}
		if suffix == "" || suffix[0] == '.' {
			return "holds an environment's secrets", nil
		}
	}
	if s.keys[f.Path] {
		return isKey, nil
	}
	if !keyName.MatchString(base) {
		return "", nil
	}
	in, err := s.tree.Open(f)
	if err != nil {
		return "", err
	}
	defer in.Close()
	const enough = 1 << 20 // a key behind a long chain of certificates
	text, err := io.ReadAll(io.LimitReader(in, enough))
	if err != nil {
		return "", fmt.Errorf("read %q: %w", f.Path, errors.Unwrap(err))
	}
	for _, mark := range keyMarks {
		if bytes.Contains(text, []byte(mark)) {
			return isKey, nil
		}
	}
	return "", nil
}
