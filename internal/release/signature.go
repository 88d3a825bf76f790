package release

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// secretKey is what every private key begins with, in this format of golang.org/x/mod/sumdb/note.
const secretKey = "PRIVATE+KEY+"

// signatures is what stands between a signed note's text and its signatures: an empty line, and how each signature begins.
const signatures = "\n\n— "

// Keyring is the public keys of which one must have signed a pointer. One without keys, or nil, takes every pointer.
type Keyring struct {
	verifiers note.Verifiers
	names     []string // name+hash of each: what people know a key by
}

// NewKeyring makes a keyring of the lines that push -keygen prints, such as "promo-ci+1d6a0f9c+AZ…". Its errors never quote what
// may be a private key.
func NewKeyring(keys []string) (*Keyring, error) {
	k := &Keyring{}
	var list []note.Verifier
	for _, key := range keys {
		v, err := verifier(key)
		if err != nil {
			return nil, err
		}
		if name := keyName(v); !slices.Contains(k.names, name) {
			list, k.names = append(list, v), append(k.names, name)
		}
	}
	k.verifiers = note.VerifierList(list...)
	return k, nil
}

// CheckVerifyKey refuses what is no public key for [NewKeyring].
func CheckVerifyKey(key string) error {
	_, err := verifier(key)
	return err
}

func verifier(key string) (note.Verifier, error) {
	if strings.HasPrefix(key, secretKey) {
		return nil, &Error{What: "key", Rule: "is a private key, which must stay with who signs"}
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return nil, &Error{What: "key", Value: key, Rule: "must be a public key as push -keygen prints it"}
	}
	return v, nil
}

func keyName(k interface {
	Name() string
	KeyHash() uint32
},
) string {
	return fmt.Sprintf("%s+%08x", k.Name(), k.KeyHash())
}

// Empty says that nothing is verified.
func (k *Keyring) Empty() bool { return k == nil || len(k.names) == 0 }

// String names the keys, for people.
func (k *Keyring) String() string { return strings.Join(k.names, " or ") }

// Open reads a pointer that must be signed by a key of the ring, or any where that is empty. A pointer of the plain layout is
// refused, because a signature of it says nothing about the files. So is one with a second signature that claims to be of a key
// of the ring and is not. The error is an [*Error] that names the keys that were expected.
func (k *Keyring) Open(text []byte) (Pointer, error) {
	if k.Empty() {
		return ParsePointer(text)
	}
	refuse := func(rule string) (Pointer, error) { return Pointer{}, &Error{What: "pointer", Rule: rule} }
	if len(text) > MaxPointer {
		return ParsePointer(text) // which says so
	}
	signed, err := note.Open(text, k.verifiers)
	var others *note.UnverifiedNoteError
	var forged *note.InvalidSignatureError
	switch {
	case errors.As(err, &others):
		var by []string
		for _, s := range others.Note.UnverifiedSigs {
			by = append(by, fmt.Sprintf("%s+%08x", quote(s.Name), s.Hash))
		}
		return refuse(fmt.Sprintf("is signed by %s, where a signature by %s is needed", strings.Join(by[:min(len(by), 3)], ", "), k))
	case errors.As(err, &forged):
		return refuse(fmt.Sprintf("has a signature of %s+%08x that is not that key's work", forged.Name, forged.Hash))
	case err != nil && bytes.Contains(text, []byte(signatures)):
		return refuse(fmt.Sprintf("is no signed note as it should be, where a signature by %s is needed", k))
	case err != nil:
		return refuse(fmt.Sprintf("is not signed, where a signature by %s is needed", k))
	}
	p, err := parse([]byte(signed.Text))
	if err == nil && p.Plain() {
		return refuse("is of the plain layout, whose files no signature covers; where keys are set only packed releases are taken")
	}
	return p, err
}

// unsigned is a pointer's text without its signatures, if it has any.
func unsigned(text []byte) []byte {
	at := bytes.LastIndex(text, []byte("\n\n"))
	if at < 0 || !bytes.HasPrefix(text[at:], []byte(signatures)) {
		return text
	}
	return text[:at+1]
}

// Signer makes signed pointers. It never prints its key.
type Signer struct {
	signer note.Signer
	public string
}

// NewSigner reads a private key as [NewKey] makes it. Its error does not quote the key.
func NewSigner(key string) (*Signer, error) {
	key = strings.TrimSpace(key)
	s, err := note.NewSigner(key)
	if err != nil {
		return nil, &Error{What: "signing key", Rule: "must be a private key as push -keygen writes it"}
	}
	// PRIVATE+KEY+name+hash+base64 of a byte for the algorithm and Ed25519's seed: note.NewSigner, which takes no other
	// algorithm, has checked that, but tells nobody the public key.
	seed, err := base64.StdEncoding.DecodeString(strings.SplitN(key, "+", 5)[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, &Error{What: "signing key", Rule: "must be an Ed25519 key"}
	}
	public, err := note.NewEd25519VerifierKey(s.Name(), ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey))
	if err != nil {
		return nil, &Error{What: "signing key", Rule: "has a name that no key may have"}
	}
	return &Signer{s, public}, nil
}

// Public is the key that verifies what s signs, as [NewKeyring] takes it.
func (s *Signer) Public() string { return s.public }

// String is the key's name and hash.
func (s *Signer) String() string { return keyName(s.signer) }

// Sign is a pointer's text as a signed note. The same pointer and key give the same bytes.
func (s *Signer) Sign(p Pointer) ([]byte, error) {
	return note.Sign(&note.Note{Text: string(p.Text()) + "\n"}, s.signer)
}

// NewKey makes a pair of keys. The name is for people and part of every signature: without spaces and plus signs.
func NewKey(name string) (private, public string, err error) {
	if name == "" || strings.ContainsAny(name, "+ \t\r\n") || textRule(name) != "" || len(name) > 100 {
		return "", "", &Error{"key name", name, "must be 1 to 100 characters without spaces, plus signs and backslashes"}
	}
	return note.GenerateKey(rand.Reader, name)
}
