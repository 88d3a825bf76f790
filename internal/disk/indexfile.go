package disk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"

	"s3pulldeploy/internal/release"
)

// indexFormat is the version that the header names; an index of another one is as none that can be read.
//
// An index is a state file: the header as a line of JSON, then the entries one after another, each
//
//	kind                      one byte
//	mode                      uvarint
//	inode, mtime              varint, the difference to the entry before
//	size                      uvarint
//	sum                       32 bytes, of a file
//	target                    uvarint length and bytes, of a link
//	path                      uvarint shared with the entry before, uvarint length of the rest, the rest
//
// which is about 55 bytes an entry.
const indexFormat = 2

func indexFile(id release.ID) string { return string(id) + ".index" }

// writeIndex keeps an index, durably.
func (d *Disk) writeIndex(ix *index) error { return d.putIndex(ix, d.fsync) }

func (d *Disk) putIndex(ix *index, sync func(*os.File) error) error {
	ix.Format, ix.Entries = indexFormat, len(ix.entries)
	head, err := json.Marshal(ix.header)
	if err != nil {
		return err
	}
	data := make([]byte, 0, len(head)+1+64*len(ix.entries))
	data = append(append(data, head...), '\n')
	var prev entry
	for i := range ix.entries {
		e := &ix.entries[i]
		data = binary.AppendUvarint(append(data, e.kind), uint64(e.mode))
		data = binary.AppendVarint(data, int64(e.inode-prev.inode))
		data = binary.AppendVarint(data, e.mtime-prev.mtime)
		data = binary.AppendUvarint(data, uint64(e.size))
		switch e.kind {
		case 'f':
			data = append(data, e.sum[:]...)
		case 'l':
			data = append(binary.AppendUvarint(data, uint64(len(e.target))), e.target...)
		}
		shared := 0
		for shared < min(len(prev.path), len(e.path)) && prev.path[shared] == e.path[shared] {
			shared++
		}
		data = binary.AppendUvarint(data, uint64(shared))
		data = binary.AppendUvarint(data, uint64(len(e.path)-shared))
		data = append(data, e.path[shared:]...)
		prev = *e
	}
	return d.putState(indexFile(ix.Release), data, sync)
}

func (d *Disk) readIndex(id release.ID) (*index, error) {
	data, err := d.readState(indexFile(id))
	if err != nil {
		return nil, err
	}
	head, data, _ := bytes.Cut(data, []byte("\n"))
	ix := &index{}
	if err = json.Unmarshal(head, &ix.header); err == nil {
		err = ix.parse(data)
	}
	if err == nil && (ix.Release != id || ix.Format != indexFormat) {
		err = fmt.Errorf("of release %q, format %d", ix.Release, ix.Format)
	}
	if err != nil {
		return nil, fmt.Errorf("load state %q: %w: %w", d.statePath(indexFile(id)), ErrState, err)
	}
	return ix, nil
}

// cursor reads the fields of an index; after the first that is not there, all are zero and bad is set.
type cursor struct {
	data []byte
	bad  bool
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.data)
	return v & c.step(n)
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.data)
	return v & int64(c.step(n))
}

// step goes n bytes on and returns a mask: all ones, or zero when there was no number.
func (c *cursor) step(n int) uint64 {
	if n <= 0 {
		c.bad, c.data = true, nil
		return 0
	}
	c.data = c.data[n:]
	return math.MaxUint64
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.data)) {
		c.bad, c.data = true, nil
		return nil
	}
	b := c.data[:n]
	c.data = c.data[n:]
	return b
}

// parse reads the entries. All paths share one string, so that an entry costs no memory of its own.
func (ix *index) parse(data []byte) error {
	if ix.Entries < 0 || ix.Entries > len(data)/7 { // the shortest entry
		return fmt.Errorf("%d entries in %d bytes", ix.Entries, len(data))
	}
	c := cursor{data: data}
	ix.entries = make([]entry, ix.Entries)
	text := make([]byte, 0, len(data))
	ends := make([]int, ix.Entries)
	var prev entry
	start := 0 // of the path before
	for i := range ix.entries {
		e := &ix.entries[i]
		for _, b := range c.bytes(1) {
			e.kind = b
		}
		e.mode = uint32(c.uvarint())
		e.inode = prev.inode + uint64(c.varint())
		e.mtime = prev.mtime + c.varint()
		e.size = int64(c.uvarint())
		switch e.kind {
		case 'f':
			copy(e.sum[:], c.bytes(uint64(len(e.sum))))
		case 'l':
			e.target = string(c.bytes(c.uvarint()))
		}
		shared, end := c.uvarint(), len(text)
		if c.bad || shared > uint64(end-start) {
			return errors.New("entry is cut off")
		}
		text = append(text, text[start:start+int(shared)]...)
		text = append(text, c.bytes(c.uvarint())...)
		start, ends[i], prev = end, len(text), *e
	}
	if c.bad || len(c.data) > 0 {
		return errors.New("not as long as it says")
	}
	all, start := string(text), 0
	for i, end := range ends {
		ix.entries[i].path, start = all[start:end], end
	}
	return nil
}

// readHeader reads the first lines of an index, without the checksum over all of it.
func (d *Disk) readHeader(id release.ID) (header, error) {
	var h header
	f, err := d.state.Open(indexFile(id))
	if err != nil {
		return h, blame(err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	if _, err := r.ReadSlice('\n'); err != nil {
		return h, fmt.Errorf("load state %q: %w: %w", d.statePath(indexFile(id)), ErrState, err)
	}
	line, err := r.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &h)
	}
	if err != nil {
		return h, fmt.Errorf("load state %q: %w: %w", d.statePath(indexFile(id)), ErrState, err)
	}
	return h, nil
}
