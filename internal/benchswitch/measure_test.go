package main

import (
	"testing"
	"time"
)

func TestRoomIsReadFromTheAgentsLog(t *testing.T) {
	const (
		begin = `time=2026-11-20T20:15:01.250Z level=INFO msg="making room in opcache" site=a why="it needs 35.1 MB"` + "\n"
		other = `time=2026-11-20T20:15:01.300Z level=INFO msg="released" site=a why="made room in opcache"` + "\n"
		end   = `time=2026-11-20T20:15:02.500Z level=INFO msg="made room in opcache" site=a` + "\n"
	)
	from := time.Date(2026, 11, 20, 20, 15, 1, 250e6, time.UTC)
	got, err := rooms(other + begin + other + begin + end + begin + end)
	if err != nil || len(got) != 2 || !got[1].from.Equal(from) || got[0].to.Sub(from) != 1251*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	for name, log := range map[string]string{"not made": begin, "not begun": end, "made twice": begin + end + end} {
		if _, err := rooms(log); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
