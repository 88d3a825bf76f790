//go:build !weakened

package weak

// Rule is the name of the safety rule that is switched off: none in any real build.
const Rule = ""
