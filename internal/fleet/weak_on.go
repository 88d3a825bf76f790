//go:build weakened

package fleet

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
