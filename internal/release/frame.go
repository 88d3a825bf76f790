package release

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// rawRatio is the ratio of compressed to plain bytes above which compressing does not pay for decompressing.
const rawRatio = 0.97

// encoder and decoder keep no state between calls and are used by many goroutines at once. No checksum: every content
// has its SHA-256. A single segment: the header always says the length, and the window is no more than that.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(MaxManifest),
		zstd.WithDecoderMaxMemory(MaxManifest), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// deflate appends plain as one zstd frame that says its decompressed length.
func deflate(dst, plain []byte) []byte { return encoder().EncodeAll(plain, dst) }

// BuildFrame appends what is stored of a frame to dst: one zstd frame, or the bytes themselves where compressing
// them gains less than 3 %. Several goroutines may call it; the result depends on nothing but plain.
func BuildFrame(dst, plain []byte) []byte {
	out := deflate(dst, plain)
	if float64(len(out)-len(dst)) > rawRatio*float64(len(plain)) {
		return append(dst, plain...)
	}
	return out
}

// DecodeFrame decompresses what is stored of a frame into dst's memory, which is used again if it is large enough,
// and returns exactly f.Length bytes, else an [*Error]: a frame that says another length, is not a single segment,
// or has a dictionary or a checksum is refused before it is decompressed, and so is anything that follows it.
// Several goroutines may call it. What comes out is not trusted yet: see [Entry.Verifier].
func DecodeFrame(dst []byte, f Frame, stored []byte) ([]byte, error) {
	if f.Length < 1 || f.Length > MaxFrame || int64(len(stored)) != f.Stored {
		return nil, &Error{What: "frame", Rule: fmt.Sprintf("is of %d bytes where the manifest says %d", len(stored), f.Stored)}
	}
	if f.Raw() {
		return append(dst[:0], stored...), nil
	}
	return inflate(dst, stored, f.Length)
}

// inflateAll decompresses a zstd frame of at most limit bytes.
func inflateAll(stored []byte, limit int64) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(stored); err != nil || !h.HasFCS || h.FrameContentSize > uint64(limit) {
		return nil, &Error{What: "zstd frame", Rule: fmt.Sprintf("must say a length of at most %d bytes", limit)}
	}
	return inflate(nil, stored, int64(h.FrameContentSize))
}

func inflate(dst, stored []byte, length int64) ([]byte, error) {
	fail := func(rule string) ([]byte, error) { return nil, &Error{What: "zstd frame", Rule: rule} }
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return fail(err.Error())
	}
	switch {
	case h.Skippable, h.DictionaryID != 0, h.HasCheckSum:
		return fail("must not be skippable, nor have a dictionary or a checksum")
	case !h.HasFCS || h.FrameContentSize != uint64(length):
		return fail(fmt.Sprintf("must say that it is %d bytes long", length))
	case !h.SingleSegment:
		return fail("must be a single segment, whose window is its length")
	case blocksEnd(stored, h.HeaderSize) != len(stored):
		return fail("does not end where its object says")
	}
	// The capacity is the limit: the decoder stops at the first byte that does not fit.
	dst = slices.Grow(dst[:0], int(length))
	out, err := decoder().DecodeAll(stored, dst[:0:length])
	if err != nil {
		return fail(err.Error())
	}
	if int64(len(out)) != length {
		return fail(fmt.Sprintf("decompresses to %d bytes instead of %d", len(out), length))
	}
	return out, nil
}

// blocksEnd is where the last block of a zstd frame ends, or -1. Each begins with three bytes, little endian: one bit
// for the last, two for the kind, the rest for its size (RFC 8878, section 3.1.1.2).
func blocksEnd(frame []byte, at int) int {
	for at+3 <= len(frame) {
		head := int(frame[at]) | int(frame[at+1])<<8 | int(frame[at+2])<<16
		size := head >> 3
		if head>>1&3 == 1 { // one byte, repeated
			size = 1
		}
		if at += 3 + size; head&1 == 1 {
			return at
		}
	}
	return -1
}

// Verifier compares the bytes of a file, written to it in order, with the file's entry.
type Verifier struct {
	entry *Entry
	hash  hash.Hash
	size  int64
}

// Verifier begins to verify the entry's contents. Bytes must not get a real name before [Verifier.Close] agreed.
func (e *Entry) Verifier() *Verifier { return &Verifier{e, sha256.New(), 0} }

// Write never fails.
func (v *Verifier) Write(p []byte) (int, error) {
	v.size += int64(len(p))
	return v.hash.Write(p)
}

// Close returns an [*Error] unless exactly the entry's contents were written.
func (v *Verifier) Close() error {
	if v.size != v.entry.Size {
		return &Error{"path", v.entry.Path, fmt.Sprintf("has %d bytes where the manifest says %d", v.size, v.entry.Size)}
	}
	if Sum(v.hash.Sum(nil)) != v.entry.Sum {
		return &Error{"path", v.entry.Path, "is not what the manifest's SHA-256 says"}
	}
	return nil
}

// Verify is for contents that lie in one piece: nil if they are the entry's.
func (e *Entry) Verify(content []byte) error {
	if int64(len(content)) == e.Size && Sum(sha256.Sum256(content)) == e.Sum {
		return nil
	}
	v := e.Verifier()
	v.size = int64(len(content))
	v.hash.Write(content)
	return v.Close()
}
