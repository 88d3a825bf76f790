package release

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	packMagic      = "s3pdpak1"
	deltaPackMagic = "s3pddel1"
	headerSize     = 8
	footerSize     = 16
)

// Pack is a finished pack: the object p/<Sum>.
type Pack struct {
	Sum  Sum
	Data []byte
}

// Packed is a part of a pack's index: contents that a frame holds, in their order.
type Packed struct {
	Sum    Sum
	Size   int64 // of the whole contents
	From   int64 // where in the contents this part begins; above zero only for the later frames of a large file
	Length int64 // bytes of it in this frame
}

// IndexFrame is a frame of a pack as the pack itself describes it.
type IndexFrame struct {
	Frame  // Source is always 0
	Packed []Packed
}

// seal ends a container: behind its frames come the compressed trailer, where it begins, and the magic once more.
func seal(data, trailer []byte) []byte {
	end := uint64(len(data))
	data = deflate(data, trailer)
	data = binary.LittleEndian.AppendUint64(data, end)
	return append(data, data[:headerSize]...)
}

// readTrailer finds and decompresses a container's trailer; end is where the frames end.
func readTrailer(r io.ReaderAt, size int64, magic string) (trailer []byte, end int64, err error) {
	fail := func(rule string) ([]byte, int64, error) { return nil, 0, &Error{What: magic, Rule: rule} }
	var head [headerSize]byte
	var foot [footerSize]byte
	if size < headerSize+footerSize {
		return fail("is too short")
	}
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, 0, fmt.Errorf("read header: %w", err)
	}
	if _, err := r.ReadAt(foot[:], size-footerSize); err != nil && err != io.EOF {
		return nil, 0, fmt.Errorf("read footer: %w", err)
	}
	if string(head[:]) != magic || string(foot[8:]) != magic {
		return fail("does not begin and end with its name")
	}
	at := binary.LittleEndian.Uint64(foot[:8])
	if at < headerSize || at > MaxSource || int64(at) > size-footerSize {
		return fail("says that its frames end outside of it")
	}
	stored := size - footerSize - int64(at)
	if stored > MaxManifest {
		return fail("has a trailer above 64 MiB")
	}
	compressed := make([]byte, stored)
	if _, err := r.ReadAt(compressed, int64(at)); err != nil {
		return nil, 0, fmt.Errorf("read trailer: %w", err)
	}
	trailer, err = inflateAll(compressed, MaxManifest)
	return trailer, int64(at), err
}

// bundle is frames that have no object of their own yet.
type bundle struct {
	data  []byte // the header and the frames
	index []IndexFrame
}

func (b *bundle) add(stored []byte, f IndexFrame) {
	if len(b.data) == 0 {
		b.data = append(b.data, packMagic...)
	}
	f.Offset, f.Stored = int64(len(b.data)), int64(len(stored))
	b.data = append(b.data, stored...)
	b.index = append(b.index, f)
}

// seal makes a pack of the bundle.
func (b *bundle) seal() *Pack {
	data := seal(b.data, appendIndex(nil, b.index))
	return &Pack{sha256.Sum256(data), data}
}

// appendIndex writes a pack's trailer: for each frame its two lengths and the number of contents, then each one's sum and
// size; where the number is 0, the one content that the frame holds a part of, and where that begins.
func appendIndex(out []byte, index []IndexFrame) []byte {
	out = binary.AppendUvarint(out, uint64(len(index)))
	for _, f := range index {
		out = binary.AppendUvarint(out, uint64(f.Stored))
		out = binary.AppendUvarint(out, uint64(f.Length))
		part := len(f.Packed) == 1 && f.Packed[0].Length < f.Packed[0].Size
		if part {
			out = append(out, 0)
		} else {
			out = binary.AppendUvarint(out, uint64(len(f.Packed)))
		}
		for _, c := range f.Packed {
			out = binary.AppendUvarint(append(out, c.Sum[:]...), uint64(c.Size))
			if part {
				out = binary.AppendUvarint(out, uint64(c.From))
			}
		}
	}
	return out
}

// ReadPackIndex reads what a pack of size bytes says of itself, without any manifest: three reads at its ends. Nothing
// is believed beyond the limits of a manifest, and contents still need to be verified.
func ReadPackIndex(r io.ReaderAt, size int64) ([]IndexFrame, error) {
	trailer, end, err := readTrailer(r, size, packMagic)
	if err != nil {
		return nil, fmt.Errorf("read pack: %w", err)
	}
	d := &reader{data: trailer}
	index := make([]IndexFrame, d.count(MaxFrames, 3+sha256.Size))
	at := int64(headerSize)
	for i := range index {
		f := &index[i]
		f.Offset, f.Stored, f.Length = at, int64(d.uvarint(MaxFrame)), int64(d.uvarint(MaxFrame))
		if f.Packed = d.packed(f.Length); d.rule == "" && (f.Stored < 1 || f.Stored > f.Length) {
			d.fail("must not have an empty frame or one that is longer stored than decompressed")
		}
		if at += f.Stored; d.rule != "" {
			break
		}
	}
	if d.rule == "" && (len(d.data) > 0 || at != end) {
		d.fail("does not fill its object")
	}
	if err := d.err("pack index"); err != nil {
		return nil, fmt.Errorf("read pack: %w", err)
	}
	return index, nil
}

// packed reads the contents of one frame, which they fill.
func (r *reader) packed(length int64) []Packed {
	n := r.count(MaxEntries, sha256.Size+1)
	list := make([]Packed, max(n, 1))
	rest := length
	for i := range list {
		c := &list[i]
		copy(c.Sum[:], r.bytes(len(c.Sum)))
		c.Size = int64(r.uvarint(MaxFileSize))
		c.Length = c.Size
		if n == 0 {
			c.From, c.Length = int64(r.uvarint(MaxFileSize)), length
			if c.From > c.Size-length || length == c.Size {
				r.fail("has a part outside its contents")
			}
		}
		if c.Length < 1 || c.Length > rest {
			r.fail("has contents that do not fit their frame")
		}
		rest -= c.Length
	}
	if rest != 0 {
		r.fail("has a frame that its contents do not fill")
	}
	return list
}
