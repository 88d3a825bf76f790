package push

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
)

// hints is what a person can do about errors of the packages below; the first that fits is said.
var hints = []struct {
	which error
	hint  string
}{
	{store.ErrNoBucket, "`push -init` creates it, or `bucket` in the settings is misspelt"},
	{fleet.ErrNoTable, "`push -init` creates it, or `table` or the region in the settings is wrong"},
	{store.ErrRegion, "set `region` in the settings to the bucket's"},
	{store.ErrNoCredentials, "set AWS_PROFILE or -profile"},
	{fleet.ErrNoAccount, "set AWS_PROFILE or -profile"},
	{store.ErrDenied, "the account that the first line names lacks a permission on the bucket"},
	{fleet.ErrDenied, "the account that the first line names lacks a permission on the table"},
	{fleet.ErrSchema, "the fleet runs a newer version: use that version of push"},
	{store.ErrUnavailable, "the network or the server; the same command again goes on"},
	{fleet.ErrUnavailable, "the network or the server; the same command again goes on"},
}

// advised is an error with advice of our own; the text stays the error's.
type advised struct {
	error
	advice string
}

func (a advised) Unwrap() error { return a.error }

// advise gives an error a hint.
func advise(err error, advice string) error { return advised{err, advice} }

// hint is the advice for a person who meets err, or "".
func hint(err error) string {
	var own advised
	if errors.As(err, &own) {
		return own.advice
	}
	if h := account.Hint(err); h != "" {
		return h
	}
	for _, h := range hints {
		if errors.Is(err, h.which) {
			return h.hint
		}
	}
	return ""
}

// complain prints an error, a line for each of its parts, and a line of advice where there is any.
func complain(w io.Writer, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(w, "push: %s\n", line)
	}
	if h := hint(err); h != "" {
		fmt.Fprintf(w, "push: hint: %s\n", h)
	}
}

// isConflict says that another push moved the pointer first.
func isConflict(err error) bool {
	var lost *store.ConflictError
	return errors.As(err, &lost)
}
