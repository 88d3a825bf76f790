package push

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"s3pulldeploy/internal/fleet"
)

func TestWhatInstancesSayMovesNoCursor(t *testing.T) {
	const evil = "\x1b[2K\r\u009b1Aall on R2"
	var out bytes.Buffer
	c := newConsole(false, nil, &out, &out)
	Status{
		Line: evil, Problems: []string{evil},
		Members: []statusMember{{Instance: "i-1" + evil, Group: evil, Zone: evil, Version: evil, Progress: evil, Reason: evil}},
	}.print(c, evil)
	c.warn("%s", evil)
	c.board().say("i-1 %s", evil)
	w := &watcher{board: c.board(), told: map[string]bool{}, printed: map[string]*fleet.Output{}}
	w.sayNo("i-1", 1, "refuses", evil)
	complain(&out, errors.New(evil))
	if n := strings.Count(out.String(), "all on R2"); n < 11 {
		t.Errorf("%d of them are there", n)
	}
	if at := strings.IndexAny(out.String(), "\x1b\r\u009b"); at >= 0 {
		t.Errorf("%q", out.String()[at:])
	}
}
