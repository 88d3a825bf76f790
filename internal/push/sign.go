package push

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// keygen makes a pair of keys, called by the last part of the path that was given. The private one goes into a file that nobody else may read, and nowhere else.
func (s *session) keygen(context.Context) error {
	private, public, err := release.NewKey(filepath.Base(s.arg))
	if err != nil {
		return kind{errUsage, err}
	}
	file := s.arg + ".key"
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return advise(fmt.Errorf("make key: %q is there already", file), "a key that is lost cannot be made again: choose another name, or move it away")
	}
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	if _, err = f.WriteString(private + "\n"); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	s.say("%s signs: keep it where pushes come from, secret, and out of the tree\n\n  signing_key: %s\n\nThis verifies, in the settings of every instance and of push:\n\n  verify_keys: [%q]",
		file, file, public)
	if !s.json {
		return nil
	}
	return s.object(struct {
		File      string `json:"file"`
		VerifyKey string `json:"verify_key"`
	}{file, public})
}

// publishes are the verbs that write pointers or notes.
var publishes = []string{verbDeploy, verbRollback, verbInit}

// keyring is whose signatures instances ask for, as far as the settings tell; for what publishes with the key that it signs with,
// which must be at hand.
func (s *session) keyring() (*release.Keyring, error) {
	if slices.Contains(publishes, s.verb) {
		if err := s.takeKey(); err != nil {
			return nil, err
		}
		if s.exposed() {
			s.warn("%s: chmod 600 %s", exposedKey, s.cfg.SigningKey.Reveal())
		}
	}
	if s.signs == nil {
		return s.cfg.Keyring(), nil
	}
	return release.NewKeyring(append(slices.Clone(s.cfg.VerifyKeys), s.signs.Public()))
}

// takeKey reads the key to sign with, where the settings name one. It fails where what is published would be no use.
func (s *session) takeKey() (err error) {
	if s.signs, err = s.cfg.Signer(); err != nil {
		return kind{errUsage, err}
	}
	switch {
	case s.signs == nil && len(s.cfg.VerifyKeys) > 0 && s.verb != verbInit:
		return kind{errUsage, advise(errors.New("verify_keys is set and signing_key is not: no instance would take what this publishes"),
			"signing_key is a file, or ${NAME} of a variable that holds the key")}
	case s.signs != nil && s.verb == verbDeploy && !s.packed():
		return kind{errUsage, errors.New("signing_key needs the packed layout: no signature covers the files of a plain release")}
	}
	return nil
}

const exposedKey = "others on this machine may read the signing key"

// exposed says whether more than its owner may read the file of the key.
func (s *session) exposed() bool {
	info, err := os.Stat(s.cfg.SigningKey.Reveal()) // a key that is no file is nobody's to read
	return err == nil && info.Mode()&0o077 != 0
}

// text is a pointer as it is published, signed where there is a key. One that could not be read again is an error, such as for
// a message that is too long.
func (s *session) text(p release.Pointer) (text []byte, err error) {
	if text = p.Text(); s.signs != nil {
		text, err = s.signs.Sign(p)
	}
	if err == nil {
		_, err = release.ParsePointer(text)
	}
	if err != nil {
		return nil, fmt.Errorf("make pointer: %w", err)
	}
	return text, nil
}

// doubt warns of a pointer that no instance with the keys takes: the first that is signed, or somebody else's.
func (v view) doubt(c *console) {
	if v.Untrusted != nil {
		c.warn("what is there now is not trusted: %v", v.Untrusted)
	}
}

// vouched refuses to sign what was not signed before: what the bucket has under the name of an earlier release may be anybody's.
func (s *site) vouched(ctx context.Context, v view, p release.Pointer, logs []fleet.Log) error {
	if s.keys.Empty() {
		return nil
	}
	fail := func(why string) error {
		return advise(fmt.Errorf("check release %q: %s", p.Release, why), "deploy it again from its source")
	}
	if p.Plain() {
		return fail("no signature covers the files of a plain release")
	}
	names := func(q *release.Content) bool { return q != nil && *q == *p.Manifest }
	if v.Untrusted == nil && v.Pointer.Release == p.Release && names(v.Pointer.Manifest) {
		return nil
	}
	s.ledger.Keys = s.keys
	note, err := s.ranOn(ctx, p.Release, logs)
	if err != nil {
		return fail(err.Error())
	}
	if note == nil || note.Pointer.Release != p.Release || !names(note.Pointer.Manifest) {
		return fail("no signed pointer says what it holds")
	}
	return nil
}
