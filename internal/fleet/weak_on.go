//go:build weakened

package fleet

// weak names the safety rule that is switched off: see [Weaken].
var weak string

// Weaken switches one safety rule off, by the name that docs/protocol.md lists, so that the simulation can show that
// it would notice. It exists only in builds with the tag weakened.
func Weaken(rule string) { weak = rule }

// mergeEarly keeps the membership of an early sweep with the votes of a later one: rule M3 switched off.
func mergeEarly(early, late []Member) []Member {
	now := map[string]Member{}
	for _, m := range late {
		now[m.Instance] = m
	}
	var out []Member
	for _, m := range early {
		if l, ok := now[m.Instance]; ok {
			m.Vote, m.Beat, m.Incarnation, m.Active, m.Failed, m.Ran = l.Vote, l.Beat, l.Incarnation, l.Active, l.Failed, l.Ran
		}
		out = append(out, m)
	}
	return out
}
