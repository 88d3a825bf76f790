package release

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// pair makes a signer and the line that verifies it.
func pair(tb testing.TB, name string) (*Signer, string) {
	tb.Helper()
	private, public, err := NewKey(name)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := NewSigner(private + "\n") // as it is read from a file
	if err != nil {
		tb.Fatal(err)
	}
	if s.Public() != public {
		tb.Fatalf("public key %q, want %q", s.Public(), public)
	}
	return s, public
}

func ring(tb testing.TB, keys ...string) *Keyring {
	tb.Helper()
	k, err := NewKeyring(keys)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func packedPointer() Pointer {
	return Pointer{
		Release: "2026-11-20_20-15-02", Sequence: 1795205702, Files: 3, Scope: "bucket/promo", Message: "a\n\n— b c\"",
		Manifest: &Content{SHA256: strings.Repeat("ab", 32), Length: 100},
	}
}

func sign(tb testing.TB, s *Signer, p Pointer) []byte {
	tb.Helper()
	text, err := s.Sign(p)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func TestASignedPointerIsOpenedByItsKeyAloneAndReadByEverybody(t *testing.T) {
	ours, key := pair(t, "promo-ci")
	_, other := pair(t, "promo-new")
	text := sign(t, ours, packedPointer())
	for _, keys := range [][]string{{key}, {other, key}, {key, key}} { // several: a rotation
		p, err := ring(t, keys...).Open(text)
		if err != nil || string(p.Text()) != string(packedPointer().Text()) {
			t.Errorf("%v: %v", p, err)
		}
	}
	for what, read := range map[string]func([]byte) (Pointer, error){
		"no keyring": (*Keyring)(nil).Open, "an empty keyring": ring(t).Open, "ParsePointer": ParsePointer,
	} {
		if p, err := read(text); err != nil || p.Scope != "bucket/promo" {
			t.Errorf("%s: %v, %v", what, p, err)
		}
	}
	if !bytes.Equal(text, sign(t, ours, packedPointer())) {
		t.Error("a retry would write other bytes, and take its own success for another's")
	}
}

// F47, and what stands in for a signature without being one.
func TestPointersWithoutAGoodSignatureAreRefusedAndTheExpectedKeysNamed(t *testing.T) {
	ours, key := pair(t, "promo-ci")
	next, nextKey := pair(t, "promo-new")
	evil, _ := pair(t, "promo-ci") // the same name, another key
	keys := ring(t, key, nextKey)
	p := packedPointer()
	good := string(sign(t, ours, p))
	body, signature, _ := strings.Cut(good, signatures)
	_, nextSignature, _ := strings.Cut(string(sign(t, next, p)), signatures)
	later := p
	later.Sequence++
	_, laterSignature, _ := strings.Cut(string(sign(t, next, later)), signatures)
	plain := p
	plain.Manifest, plain.Scope = nil, ""
	for name, c := range map[string]struct{ text, says string }{
		"unsigned":                     {string(p.Text()), "is not signed, where a signature by " + ours.String() + " or " + next.String()},
		"by an unknown key":            {string(sign(t, evil, p)), "is signed by \"promo-ci\"" + strings.TrimPrefix(evil.String(), "promo-ci") + ", where a signature by " + ours.String()},
		"by a revoked key":             {good, "is signed by"},
		"changed after signing":        {strings.Replace(good, "1795205702", "1795205703", 1), "has a signature of " + ours.String() + " that is not"},
		"of another pointer":           {body + signatures + laterSignature, "has a signature of " + next.String()},
		"with a forged second one":     {good + "— " + laterSignature, "has a signature of " + next.String()},
		"cut short":                    {good[:len(good)-20], "is no signed note"},
		"without its last line end":    {strings.TrimSuffix(good, "\n"), "is no signed note"},
		"with CR LF":                   {strings.ReplaceAll(good, "\n", "\r\n"), "is not signed"},
		"behind another text":          {"aa\n9\n1\n" + good, "has a signature of"},
		"signed, and unsigned after":   {good + "\n\n" + string(p.Text()), "is no signed note"},
		"signed twice around":          {body + "\n\n— x y\n" + signatures + signature, "is"},
		"of the plain layout":          {string(sign(t, ours, plain)), "plain layout"},
		"longer than 4096 bytes":       {good + strings.Repeat("— "+nextSignature, 40), "longer than 4096"},
		"empty":                        {"", "is not signed"},
		"only a signature":             {"— " + signature, "is not signed"},
		"signed, but no pointer":       {string(signText(t, ours, "hello\n")), "lines"},
		"an empty line inside":         {string(signText(t, ours, string(p.Text())+"\n\nmessage \"x\"\n")), "must begin with a key"},
		"signatures inside the text":   {string(signText(t, ours, good)), "must begin with a key"},
		"smuggled line in the release": {string(signText(t, ours, strings.Replace(string(p.Text()), "2026-11-20_20-15-02", "aa\n1\n1\nbb", 1)+"\n")), "pointer line 4"},
	} {
		k := keys
		if name == "by a revoked key" {
			k = ring(t, nextKey)
		}
		_, err := k.Open([]byte(c.text))
		var rule *Error
		if !errors.As(err, &rule) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, which should say %q", name, err, c.says)
		}
	}
	if _, err := keys.Open([]byte(good + "— " + nextSignature)); err != nil {
		t.Errorf("signed by both, as in a rotation: %v", err)
	}
}

// signText signs whatever text, as the holder of a key can.
func signText(tb testing.TB, s *Signer, text string) []byte {
	tb.Helper()
	sig, err := s.signer.Sign([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	hash := s.signer.KeyHash()
	raw := append([]byte{byte(hash >> 24), byte(hash >> 16), byte(hash >> 8), byte(hash)}, sig...)
	return fmt.Appendf(nil, "%s\n— %s %s\n", text, s.signer.Name(), base64Of(raw))
}

func TestKeysThatAreNoneAreRefusedWithoutBeingPrinted(t *testing.T) {
	private, public, err := NewKey("promo-ci")
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.SplitN(private, "+", 5)[4] // base64 has plus signs too
	for _, bad := range []string{"", "x", private, public[:len(public)-4], strings.Replace(public, "promo-ci", "promo-cd", 1)} {
		if err := CheckVerifyKey(bad); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("verify key %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", public, private[:len(private)-4], strings.Replace(private, "promo-ci", "promo-cd", 1), secret} {
		if _, err := NewSigner(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("signing key: %v", err)
		}
	}
	for _, bad := range []string{"", "a b", "a+b", "a\nb", "a\\b", strings.Repeat("x", 101), "\xff"} {
		if _, _, err := NewKey(bad); err == nil {
			t.Errorf("a key may be called %q", bad)
		}
	}
	s, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %s", s, s, s); strings.Contains(text, secret) {
		t.Error("a signer prints its key")
	}
}

// FuzzOpen: nothing is taken without a signature, and what is taken reads the same without keys.
func FuzzOpen(f *testing.F) {
	s, err := NewSigner(fuzzKey)
	if err != nil {
		f.Fatal(err)
	}
	k := ring(f, s.Public())
	f.Add(sign(f, s, packedPointer()))
	f.Add(packedPointer().Text())
	f.Add([]byte("aa\n1\n1\n\n— x y\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := k.Open(text)
		if err != nil {
			return
		}
		again, err := ParsePointer(text)
		if err != nil || string(again.Text()) != string(p.Text()) {
			t.Fatalf("with keys %q, without %q, %v", p.Text(), again.Text(), err)
		}
		if p.Plain() {
			t.Fatal("a plain release was taken for signed")
		}
	})
}

// fuzzKey is fixed, so that a corpus with signatures stays good. It signs nothing but tests.
const fuzzKey = "PRIVATE+KEY+fuzz+1d38f6b6+Ae4XFE6LMmg/wdkPSwdrnFGeDsulAKZd60v0DyW1vxxw"

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
