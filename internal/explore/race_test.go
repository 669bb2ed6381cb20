//go:build race

package explore

// raceEnabled leaves out what takes long: there is one goroutine here.
const raceEnabled = true
