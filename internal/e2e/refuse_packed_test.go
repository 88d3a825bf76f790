package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// magic begins and ends a pack.
const magic = "s3pdpak1"

// sum is what a pointer and a pack's key name bytes by.
func sum(object []byte) string {
	s := sha256.Sum256(object)
	return hex.EncodeToString(s[:])
}

// frame is a zstd frame as manifests and packs have them.
func frame(t *testing.T, plain []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	check(t, err)
	return e.EncodeAll(plain, nil)
}

// bomb has the payload of a manifest with one pack of one frame name another pack instead: its frame says as many bytes as the manifest, and
// has 32 MiB. It returns the key of the pack, which is in the bucket.
func (s *site) bomb(payload []byte) (forged []byte, key string) {
	s.t.Helper()
	at := len("s3pdman1") + 3 + 1 // how many sources, frames and entries; a pack
	key = "p/" + hex.EncodeToString(payload[at:at+sha256.Size])
	rest := payload[at+sha256.Size:]
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		rest = rest[n:]
		return v
	}
	end, source, offset, stored, length := number(), number(), number(), number(), number()
	if source != 0 || offset != uint64(len(magic)) || end != offset+stored {
		s.t.Fatalf("frame at %d of %d, %d bytes, in source %d: want one frame in all", offset, end, stored, source)
	}
	const has = 32 << 20
	lies := frame(s.t, make([]byte, has))
	size := bytes.Index(lies, binary.LittleEndian.AppendUint32(nil, has))
	if size < 0 || size > 5 {
		s.t.Fatal("the length is not where it should be")
	}
	binary.LittleEndian.PutUint32(lies[size:], uint32(length))
	old, behind := s.object(key), uint64(len(magic)+len(lies))
	pack := append([]byte(magic), lies...)
	pack = append(pack, old[end:len(old)-16]...)
	pack = append(binary.LittleEndian.AppendUint64(pack, behind), magic...)
	key = "p/" + sum(pack)
	s.put(key, string(pack))
	name := sha256.Sum256(pack)
	forged = append(bytes.Clone(payload[:at]), name[:]...)
	for _, n := range []uint64{behind, source, offset, uint64(len(lies)), length} {
		forged = binary.AppendUvarint(forged, n)
	}
	return append(forged, rest...), key
}

// hostileReleases: somebody who may write to the bucket publishes what no push would: each is refused as a whole, by the name of the object and
// the rule; the agent serves on, and takes the next good release.
func hostileReleases(t *testing.T, w *world) {
	s := newSite(t, w)
	s.tree(map[string]string{"innocent1": "x", "innocent2": "x", "innocent2-x": "x", "large": strings.Repeat("x", 500_000)})
	check(t, os.Symlink("somewhere", filepath.Join(s.app, "link")))
	model, _ := s.rollOut(0, "-deploy="+s.app, "-layout=packed")
	object := []byte(s.object("m/" + model.Release))
	decoder, err := zstd.NewReader(nil)
	check(t, err)
	defer decoder.Close()
	payload, err := decoder.DecodeAll(object, nil)
	check(t, err)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	last, pid := s.live(1, files("0")), a.Pid()
	for n, c := range []struct{ these, those, says string }{
		{"\x08\x012", "\x09\x00", `path \"innocent1\": must come before \"innocent1\", and once`},
		{"\x09\x02-x", "\x09\x02/x", `path \"innocent2/x\": lies in \"innocent2\", which is not a directory`},
		{"somewhere", "../../etc", `link \"link\" to \"../../etc\": target leaves the release`},
		{"", "", "zstd frame: "}, // a bomb
	} {
		id := fmt.Sprintf("2026-02-03_04-05-%02d", n)
		forged, names := bytes.Replace(payload, []byte(c.these), []byte(c.those), 1), id
		if c.these == "" {
			forged, names = s.bomb(payload)
		}
		forged = frame(t, forged)
		s.put("m/"+id, string(forged))
		s.put("latest-deploy", fmt.Sprintf("%s\n%d\n%d\nscope %q\nmanifest %q", id, last.Sequence+1, model.Files,
			s.bucket+"/"+s.name, fmt.Sprintf("%s %d", sum(forged), len(forged))))
		s.await(joinTime, "the fleet refuses "+c.says, func() string {
			r := s.push("-status", "-json")
			for _, text := range []string{`"abort"`, names, c.says} {
				if !strings.Contains(r.stdout, text) {
					return fmt.Sprintf("no %s in %s", text, r)
				}
			}
			return ""
		})
		if code, err := a.get("/health", nil); code != http.StatusOK || a.active() != last.Release || slices.Contains(a.names(), id) {
			t.Errorf("%s: health %d (%v), active %s (want %s), on the disk %q", c.says, code, err, a.active(), last.Release, a.names())
		}
		serving(t, a, fmt.Sprint(n))
		last = s.live(1, files(fmt.Sprint(n+1)))
		serving(t, a, fmt.Sprint(n+1))
	}
	if now := a.Pid(); now != pid {
		t.Errorf("the agent is process %d, was %d", now, pid)
	}
}
