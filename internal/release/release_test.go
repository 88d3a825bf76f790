package release

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestNewIDIsUTCAndParses(t *testing.T) {
	at := time.Date(2026, 11, 20, 22, 15, 2, 999, time.FixedZone("", 2*3600))
	id := NewID(at)
	if id != "2026-11-20_20-15-02" {
		t.Fatalf("NewID = %q", id)
	}
	if got, err := ParseID(string(id)); err != nil || got != id {
		t.Fatalf("ParseID = %q, %v", got, err)
	}
}

func TestParseIDTakesWhatTheOlderToolWroteAndRefusesTheRest(t *testing.T) {
	for _, ok := range []string{"2026-11-20_20-15-02", "v1.2.3", "20261120201502", "ab", "A" + strings.Repeat("x", 127)} {
		if _, err := ParseID(ok); err != nil {
			t.Errorf("%q refused: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "m", "d", "p", "7", "latest-deploy", ".incoming-x", "-rf", "_x", "a/b", "..", "a b", "a\n", "ä1",
		"a" + strings.Repeat("x", 128),
	} {
		var e *Error
		if _, err := ParseID(bad); !errors.As(err, &e) {
			t.Errorf("%q accepted: %v", bad, err)
		}
	}
}

func TestIDCollidesWithTheLinksBesideIt(t *testing.T) {
	for id, want := range map[ID]bool{"current": true, "previous": true, "active": false, "2026-11-20_20-15-02": false} {
		if got := id.Collides("current"); got != want {
			t.Errorf("%q collides: %v", id, got)
		}
	}
}

func TestStampIsTheTimeOrTheHash(t *testing.T) {
	for id, want := range map[ID]string{
		"2026-11-20_20-15-02":     "1795205702",
		"v1":                      "65954165134575", // 0x3bfc269594ef, from sha256sum
		"2026-11-20_20-15-02.5":   "",
		"2026-13-20_20-15-02":     "",
		"0001-01-01_00-00-00":     "",
		"2026-11-20_20-15-02-bis": "",
	} {
		got := id.Stamp()
		if want == "" && (got == "1795205702" || strings.HasPrefix(got, "-") || len(got) > 15) {
			t.Errorf("%q: stamp %s is not of a hash", id, got)
		}
		if want != "" && got != want {
			t.Errorf("%q: stamp %s, want %s", id, got, want)
		}
	}
}

func TestParseSite(t *testing.T) {
	for s, ok := range map[string]bool{
		"promo-production": true, "1": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "Promo": false, "a_b": false, "a/b": false, "a\n": false, strings.Repeat("a", 64): false,
	} {
		if err := ParseSite(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestNextSequenceGrowsWhateverTheClockSays(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		last []int64
		want int64
	}{{nil, 1000}, {[]int64{999, 0}, 1000}, {[]int64{1000}, 1001}, {[]int64{5, 2000, 1999}, 2001}, {[]int64{math.MaxInt64, 3}, math.MaxInt64}} {
		if got := NextSequence(now, c.last...); got != c.want {
			t.Errorf("NextSequence(1000, %v) = %d, want %d", c.last, got, c.want)
		}
	}
}

func TestErrorQuotesAndCutsForeignValues(t *testing.T) {
	e := &Error{"path", strings.Repeat("é\n", 5000), "is long"}
	got := e.Error()
	if len(got) > 400 || strings.Contains(got, "\n") || !strings.HasSuffix(got, `"...: is long`) || strings.Contains(got, `\x`) {
		t.Errorf("error is %q", got)
	}
}

func TestShare(t *testing.T) {
	for s, of10 := range map[string]int{"0": 0, "3": 3, "30": 10, "0%": 0, "25%": 2, "100%": 10} {
		share, err := ParseShare(s)
		if err != nil || share.Of(10) != of10 {
			t.Errorf("%q of 10 = %d, %v; want %d", s, share.Of(10), err, of10)
		}
	}
	for _, s := range []string{"", "-1", "101%", "10 %", "1.5", "%", "007", "1e3", "10%%"} {
		if _, err := ParseShare(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestCheckWave(t *testing.T) {
	for s, ok := range map[string]bool{
		"1": true, "25%": true, "cron:100%": true, "web:2": true,
		"": false, "0": false, "0%": false, "cron": false, "cron:": false, ":1": false, "Web:1": false, "1,2": false,
	} {
		if err := CheckWave(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
