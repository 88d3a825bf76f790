//go:build weakened

package weak

// Rule is the name of the safety rule that is switched off, such as "M3"; empty: none.
var Rule string
