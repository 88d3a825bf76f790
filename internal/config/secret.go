package config

import (
	"fmt"
	"io"
	"log/slog"
)

// masked is what a secret prints as.
const masked = "<secret>"

// Secret is a value that prints as <secret> wherever it is formatted, logged or marshalled; empty stays empty.
type Secret string

// Reveal is the value itself, for the one place that uses it.
func (s Secret) Reveal() string { return string(s) }

// String is <secret>, or empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// Format prints <secret> for every verb: without it, %d and the like would show the value.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		fmt.Fprintf(f, "%q", s.String())
		return
	}
	io.WriteString(f, s.String())
}

// GoString is for %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText is for encoding/json and every other text form.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML is for yaml.v3.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue is for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
