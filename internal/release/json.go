package release

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// entryJSON and frameJSON are what `push -manifest` prints: names for people and jq, sums in hex.
type (
	entryJSON struct {
		Path   string `json:"path"`
		Type   string `json:"type"`
		Mode   string `json:"mode,omitempty"`
		Size   *int64 `json:"size,omitempty"`
		SHA256 *Sum   `json:"sha256,omitempty"`
		Target string `json:"target,omitempty"`
		MTime  int64  `json:"mtime"`
		Frame  *int32 `json:"frame,omitempty"`
		Offset *int64 `json:"offset,omitempty"`
	}
	frameJSON struct {
		Object   string `json:"object"`
		Offset   int64  `json:"offset"`
		Stored   int64  `json:"stored"`
		Length   int64  `json:"length"`
		Encoding string `json:"encoding"`
	}
)

// WriteJSON prints the manifest of the release as one JSON object: `release`, `files`, `bytes`, then `entries` and
// `frames`, one on each line. A file's `frame` is an index into frames, and `offset` where it begins in that frame
// decompressed; a large file goes on in the next frames. A frame's `object` is its key below <prefix><site>/.
func (m *Manifest) WriteJSON(w io.Writer, release ID) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "{\"release\":%q,\"files\":%d,\"bytes\":%d,\"entries\":[", release, m.Files(), m.Bytes())
	for i := range m.Entries {
		if err := writeLine(out, i, m.Entries[i].json()); err != nil {
			return err
		}
	}
	out.WriteString("\n],\"frames\":[")
	for i, f := range m.Frames {
		line := frameJSON{m.Sources[f.Source].Key(), f.Offset, f.Stored, f.Length, "zstd"}
		if f.Raw() {
			line.Encoding = "raw"
		}
		if err := writeLine(out, i, line); err != nil {
			return err
		}
	}
	out.WriteString("\n]}\n")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write manifest as JSON: %w", err)
	}
	return nil
}

func writeLine(out *bufio.Writer, i int, line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("write manifest as JSON: %w", err)
	}
	if i > 0 {
		out.WriteByte(',')
	}
	out.WriteByte('\n')
	out.Write(text) // the first error stays and is what Flush returns
	return nil
}

func (e *Entry) json() entryJSON {
	j := entryJSON{Path: e.Path, Type: e.Kind.String(), Target: e.Target, MTime: e.MTime}
	if e.Kind == File {
		j.Mode = fmt.Sprintf("%04o", e.Mode())
		j.Size, j.SHA256 = &e.Size, &e.Sum
	}
	if e.hasContent() {
		j.Frame, j.Offset = &e.Frame, &e.Offset
	}
	return j
}
