package push

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/config"
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
	{store.ErrDenied, "these credentials lack a permission on the bucket: `push -policy=ci` prints what push needs"},
	{fleet.ErrDenied, "these credentials lack a permission on the table: `push -policy=ci` prints what push needs"},
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

// unsigned are the codes of S3 and DynamoDB for a request whose signature they do not believe. Both packages call that
// denied, and it is; but no permission mends it.
var unsigned = []string{
	"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId",
	"UnrecognizedClientException", "RequestTimeTooSkewed",
}

// isUnsigned says that the credentials themselves were refused.
func isUnsigned(err error) bool {
	return (errors.Is(err, store.ErrDenied) || errors.Is(err, fleet.ErrDenied)) &&
		slices.ContainsFunc(unsigned, func(code string) bool { return strings.Contains(err.Error(), code) })
}

// hint is the advice for a person who meets err, or "".
func hint(err error) string {
	var own advised
	if errors.As(err, &own) {
		return own.advice
	}
	if h := account.Hint(err); h != "" {
		return h
	}
	var settings *config.Error
	if errors.As(err, &settings) {
		return cmp.Or(settings.Hint, "config.sample.yml has every key with its rule")
	}
	if isUnsigned(err) {
		return "the access key or its secret is wrong, or this machine's clock is"
	}
	for _, h := range hints {
		if errors.Is(err, h.which) {
			return h.hint
		}
	}
	return ""
}

// said is the text of an error for people: without the advice, which has a line of its own, and without what a
// service adds where our own words say it all.
func said(err error) string {
	text := err.Error()
	var settings *config.Error
	if errors.As(err, &settings) {
		text = strings.ReplaceAll(text, settings.Error(), settings.Text())
	}
	if ours := fleet.ErrNoTable.Error(); errors.Is(err, fleet.ErrNoTable) {
		if before, _, found := strings.Cut(text, ours); found {
			text = before + ours
		}
	}
	return text
}

// each takes joined errors apart; what is joined says what its parts say, a line for each.
func each(err error) []error {
	switch e := err.(type) {
	case kind:
		return each(e.error)
	case interface{ Unwrap() []error }:
		var parts []error
		var texts []string
		for _, part := range e.Unwrap() {
			parts, texts = append(parts, each(part)...), append(texts, part.Error())
		}
		if len(texts) > 1 && strings.Join(texts, "\n") == err.Error() {
			return parts
		}
	}
	return []error{err}
}

// cause is what two errors have in common when the one would not be there without the other.
func cause(err error) string {
	var own *account.Error
	if errors.As(err, &own) {
		return own.Error()
	}
	for _, h := range hints {
		if errors.Is(err, h.which) {
			return h.which.Error()
		}
	}
	return said(err)
}

// causes are the errors of a list that are not nil, the first of each cause.
func causes(list ...error) []error {
	var found []error
	seen := map[string]bool{}
	for _, err := range list {
		if err != nil && !seen[cause(err)] {
			seen[cause(err)] = true
			found = append(found, err)
		}
	}
	return found
}

// complain prints an error, a line for each of its parts, each with a line of advice where there is any.
func complain(w io.Writer, err error) {
	for _, part := range each(err) {
		for line := range strings.SplitSeq(said(part), "\n") {
			fmt.Fprintf(w, "push: %s\n", printable(line))
		}
		if h := hint(part); h != "" {
			fmt.Fprintf(w, "push: hint: %s\n", printable(h))
		}
	}
}

// isConflict says that another push moved the pointer first.
func isConflict(err error) bool {
	var lost *store.ConflictError
	return errors.As(err, &lost)
}
