package push

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// completion prints a script that completes verbs, their options, and folders and files where a value is one.
func (s *session) completion(context.Context) error {
	var script string
	switch s.arg {
	case "bash":
		script = bashCompletion
	case "zsh":
		script = "autoload -U +X bashcompinit && bashcompinit\n" + bashCompletion
	default:
		return kind{errUsage, fmt.Errorf("-%s must be bash or zsh, not %q", verbComplete, s.arg)}
	}
	var options strings.Builder
	for _, name := range slices.Sorted(maps.Keys(verbs)) {
		fmt.Fprintf(&options, "\t\t-%s|-%[1]s=*) words=%q ;;\n", name, strings.Join(flagWords(common+" "+verbs[name].options), " "))
	}
	script = strings.NewReplacer("VERBS", strings.Join(verbWords(), " "), "\t\tOPTIONS\n", options.String()).Replace(script)
	_, err := fmt.Fprint(s.stdout, script)
	return err
}

// verbWords are the verbs as they are typed: with an equals sign where a value must follow.
func verbWords() (words []string) {
	for _, name := range slices.Sorted(maps.Keys(verbs)) {
		if verbs[name].needsValue() {
			name += "="
		}
		words = append(words, "-"+name)
	}
	return words
}

// flagWords are options as they are typed.
func flagWords(names string) (words []string) {
	set := flagSet(&options{})
	for _, name := range strings.Fields(names) {
		f := set.Lookup(name)
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); !ok || !b.IsBoolFlag() {
			name += "="
		}
		words = append(words, "-"+name)
	}
	return words
}

// bashCompletion works in zsh too, through its emulation. Bash cuts words at equals signs, so values come as words of their own.
const bashCompletion = `# completion of push; load it with: source <(push -completion=bash)
_s3_pull_deploy_push() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words="VERBS" w
	if [ "$cur" = = ]; then prev="$prev=" cur=; elif [ "$prev" = = ]; then prev=${COMP_WORDS[COMP_CWORD-2]}=; fi
	case $prev in
		-deploy=) COMPREPLY=($(compgen -d -- "$cur")); return ;;
		-config=) COMPREPLY=($(compgen -f -- "$cur")); return ;;
		-layout=) COMPREPLY=($(compgen -W "plain packed" -- "$cur")); return ;;
		-wait=) COMPREPLY=($(compgen -W "true false" -- "$cur")); return ;;
		-completion=) COMPREPLY=($(compgen -W "bash zsh" -- "$cur")); return ;;
		*=) return ;;
	esac
	for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $w in
		OPTIONS
		esac
	done
	COMPREPLY=($(compgen -W "$words" -- "$cur"))
	case ${COMPREPLY[0]} in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _s3_pull_deploy_push push s3-pull-deploy-push
`
