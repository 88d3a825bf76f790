//go:build weakened

package fleet

// weak names the safety rule that is switched off: M1 to M10, see [Weaken].
var weak string

// Weaken switches one safety rule off, by the name that docs/protocol.md lists, so that the simulation can show that
// it would notice. It exists only in builds with the tag weakened.
func Weaken(rule string) { weak = rule }
