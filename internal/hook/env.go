package hook

import (
	"strconv"
	"strings"
	"unicode"
)

// Env is what a command is told about the deploy. All hooks get the same variables; one that has no
// value is empty, so that `set -u` in a script is safe.
type Env struct {
	Site, Group string
	Release     string // the one that this is about
	Previous    string // the one that was live before; empty: none
	Sequence    int64  // the pointer's, Unix seconds
	Commit      string // as the push named it
	Instance    string
	Zone        string
	Kind        string // deploy or rollback
}

// Vars returns the variables DEPLOY_SITE, DEPLOY_GROUP, DEPLOY_RELEASE, DEPLOY_PREVIOUS,
// DEPLOY_SEQUENCE, DEPLOY_COMMIT, DEPLOY_INSTANCE, DEPLOY_ZONE and DEPLOY_KIND. Control characters,
// which a pointer may bring and the kernel or a log would stumble over, become spaces.
func (e Env) Vars() []string {
	vars := []string{
		"SITE=" + e.Site, "GROUP=" + e.Group, "RELEASE=" + e.Release, "PREVIOUS=" + e.Previous,
		"SEQUENCE=" + strconv.FormatInt(e.Sequence, 10), "COMMIT=" + e.Commit,
		"INSTANCE=" + e.Instance, "ZONE=" + e.Zone, "KIND=" + e.Kind,
	}
	for i, v := range vars {
		vars[i] = "DEPLOY_" + strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, v)
	}
	return vars
}
