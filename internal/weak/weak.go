// Package weak switches one safety rule of the protocol off, so that the simulation can show that it would notice.
//
// Only a build with the tag weakened has it. In every other one [Rule] is the empty constant, and the compiler leaves nothing of
// the weakened ways in the binary. The rules are listed in docs/protocol.md.
package weak
