package release

import (
	"regexp"
	"strconv"
	"strings"
)

var sharePattern = regexp.MustCompile(`^(0|[1-9][0-9]{0,5})(%?)$`)

// Share is a part of the members: a count, or a percentage of them.
type Share struct {
	N       int
	Percent bool
}

// ParseShare reads "3" or "10%"; a percentage is at most 100.
func ParseShare(s string) (Share, error) {
	m := sharePattern.FindStringSubmatch(s)
	if m == nil {
		return Share{}, &Error{"share", s, `must be a count such as "3" or a percentage such as "10%"`}
	}
	n, _ := strconv.Atoi(m[1]) // at most six digits
	if m[2] == "%" && n > 100 {
		return Share{}, &Error{"share", s, "must be at most 100%"}
	}
	return Share{n, m[2] == "%"}, nil
}

// Of is how many of so many members the share is, rounded down.
func (s Share) Of(members int) int {
	if s.Percent {
		return members * s.N / 100
	}
	return min(s.N, members)
}

// CheckWave accepts one wave of a rollout: a share above zero of all members, or of a group's: "1", "25%", "cron:100%".
func CheckWave(s string) error {
	share := s
	if group, rest, ok := strings.Cut(s, ":"); ok {
		if err := ParseSite(group); err != nil {
			return &Error{"wave", s, "must name a group before the colon"}
		}
		share = rest
	}
	if parsed, err := ParseShare(share); err != nil || parsed.N == 0 {
		return &Error{"wave", s, `must be a share above zero such as "1", "25%" or "cron:100%"`}
	}
	return nil
}
