//go:build race

package zcstream

const raceEnabled = true
