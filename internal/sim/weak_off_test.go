//go:build !weakened

package sim

func weakened() string { return "" }
