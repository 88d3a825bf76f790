// Package release says what a release is: its id, the pointer that names it, the paths it may hold, the
// listing of its objects, its manifest and packs, and which files of a tree never become part of one.
//
// Parties. push makes releases and moves the pointer; agents read them; an older tool of the same shape
// reads and writes the first three lines of the pointer. Everything here is pure: no AWS, no
// clock, no log, no disk.
//
// Objects of a site under <bucket>/<prefix><site>/:
//
//	latest-deploy          the pointer: release id, sequence, number of files, then `key "value"` lines
//	<release>/<path>       plain layout: one object for each file
//	m/<release>            packed layout: the manifest, every path of the release and where its contents are
//	d/<release>/<parent>   packed layout: the delta, what of the manifest differs from the parent's, with small contents inline
//	p/<sha256>             packed layout: a pack of contents, named by the SHA-256 of its bytes
//
// Order of writes. Contents first, then manifest and delta, the pointer last, so a pointer never names what is not
// there yet. All but the pointer are written once and never change; the [Listing.Digest] of a plain release and the
// [Manifest.Digest] of a packed one are the same for everyone who reads it.
//
// Trust. All text that is parsed here comes from a bucket that others can write to. It is bounded before it is
// looked at, and refused as a whole at the first rule that it breaks: an [*Error], which is always about the release
// and never about the machine that reads it. The chain of a packed release is: the pointer, signed where keys are
// configured, has the SHA-256 of manifest and delta; a delta has that of the manifest's payload; the manifest that
// of every file. Frames and packs need no sum of their own on the way down, so ranged reads are safe.
//
// # Packed layout
//
// Numbers are uvarints (as in encoding/binary, at most 63 bits, in their shortest form) unless said otherwise; a
// string is its length and its bytes. zstd frames are single segments that say their length, without dictionary and
// checksum.
//
// A frame is what is decompressed as a whole, at most 4 MiB: small files that are neighbours in path order, together
// at most 1 MiB; or 4 MiB, at the end less, of a file larger than 1 MiB, whose frames follow one another. It is one
// zstd frame (RFC 8878), or the bytes as they are where that would save less than 3 %: then, and only then, its
// stored length is its length.
//
// A pack is frames and an index of them. A delta is built alike:
//
//	0       8   "s3pdpak1"                      "s3pddel1" for a delta
//	8           frames, one after another       at most 8 MiB in a delta
//	E           trailer, one zstd frame         the pack's index; the delta's difference
//	end-16  8   E, 64 bits little endian
//	end-8   8   "s3pdpak1"                      "s3pddel1"
//
// A pack's index lets it be read without a manifest ([ReadPackIndex]), by who repairs or collects. It is the number
// of frames, and for each: stored length, length, number of contents n, then n times a SHA-256 and a size, the
// contents that fill the frame in this order; or, with n = 0, the SHA-256 and size of the one file that the frame
// has a part of, and where in the file that begins.
//
// A manifest is one zstd frame, so zstd alone unpacks it. Its payload is canonical: whatever is accepted is written
// again as the same bytes.
//
//	"s3pdman1"
//	number of sources, of frames, of entries
//	sources   each: 0, SHA-256 of a pack; or 1, release and parent of a delta as strings; then E of the object
//	frames    each: source, offset in it, stored length, length
//	kinds     a byte each: 0 directory, 1 file 0644, 2 file 0755, 3 symlink
//	paths     each: how many bytes it shares with the path before, and the rest as a string
//	targets   a string for each symlink
//	mtimes    each: difference to the one before, zigzag; Unix seconds
//	sizes     of each file
//	sums      32 bytes of each file that is not empty
//	places    of each file that is not empty: 0, right behind the contents before in the same frame; else 1 + zigzag(difference
//	          of the frame's number to the one before), then the offset in the decompressed frame; before the first: frame 0, offset 0
//
// As in this one, of an executable file of 8 bytes, stored raw in frame 0 of a pack, and a link to it:
//
//	00  73 33 70 64 6d 61 6e 31                     magic
//	08  01 01 03                                    1 source, 1 frame, 3 entries
//	0b  00 9a … 32 bytes … 10                       the pack, frames end at byte 16
//	2d  00 08 08 08                                 frame 0: source 0, offset 8, 8 bytes, of 8
//	31  00 02 03                                    directory, executable, symlink
//	34  00 03 62 69 6e                              "bin"
//	39  03 04 2f 72 75 6e                           "bin" and "/run"
//	3f  00 03 72 75 6e                              "run"
//	44  07 62 69 6e 2f 72 75 6e                     links to "bin/run"
//	4c  14 00 00                                    10, and twice the same
//	4f  08                                          size
//	50  e1 … 32 bytes …                             SHA-256
//	70  00                                          frame 0, offset 0
//
// Rules beyond the limits of the constants: paths are as [CheckPath] wants them and in the order of [ComparePaths],
// each once, each after the directory that it lies in: every directory is listed, empty ones too, so no file or link
// can be one. Links are as [CheckLinkTarget] wants them and lead through at most 8 others. Shared bytes are as many
// as there are. Frames are numbered in the order in which entries first need them, sources in that of the frames,
// and none is without use. Frames lie inside their source, contents inside a frame, or fill several from beginning
// to end. An empty file has no place. Nothing follows the last place.
//
// A delta's difference:
//
//	"s3pddif1"
//	SHA-256 of the release's manifest payload
//	number of frames of the parent's manifest, P
//	then as in a manifest, from the number of sources on, of entries that are new or changed; kind 4: the path is removed, and it
//	has nothing else. Frames below P are the parent's, the first of the delta's own is number P. Directories need not be listed.
//
// What it makes of the parent's manifest must have the SHA-256 that it says. That is taken over the payload because
// another version of a compressor may write other bytes; the pointer's `manifest` is of the stored object.
//
// Times. The mtime of an entry is that of the release that last changed its kind, mode, contents or target
// ([NewDraft]), minus 60 s: the same on every instance, and old enough for opcache.
//
// Reading without this program: the manifest tells frame and offset (push -manifest prints it), then `dd` cuts the
// frame out of the pack, `zstd -d` decompresses it unless it is raw, and `dd` cuts the file out of that.
package release
