package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// kind is a fault.
type kind string

// The faults. Zero is invalid. The primary and the backup are whichever hosts
// have these roles when the fault comes.
const (
	faultQEMU     kind = "qemu"             // SIGKILL to the guest's QEMU
	faultDaemon   kind = "daemon"           // SIGKILL to the primary's daemon, restarted soon
	faultLibvirtd kind = "libvirtd"         // SIGKILL to the primary's libvirtd, restarted soon
	faultHost     kind = "host"             // power loss of the primary's host
	faultPower    kind = "power"            // SIGKILL to QEMU, libvirtd and daemon of the primary at once; its kernel lives
	faultFreeze   kind = "freeze"           // the primary's host stands still until the backup has taken over, and then goes on
	faultHiccup   kind = "hiccup"           // it stands still for less than the limit
	faultClients  kind = "clients"          // the primary's cable to the clients is cut for a while
	faultJob      kind = "blockjob"         // somebody ends the mirror of a disk with virsh
	faultSuspend  kind = "suspend"          // somebody suspends the guest, and resumes it
	faultFailback kind = "failback"         // somebody moves the guest to the other host, in order
	faultBackup   kind = "backup-daemon"    // SIGKILL to the backup's daemon, restarted soon
	faultBackLibv kind = "backup-libvirtd"  // SIGKILL to the backup's libvirtd, restarted soon
	faultBackHost kind = "backup-host"      // power loss of the backup's host
	faultStandby  kind = "standby"          // SIGKILL to the standby's QEMU
	faultLink     kind = "link"             // the replication link is cut, and healed after the decision
	faultDeafHere kind = "link-deaf"        // the same, but the backup still hears the primary
	faultDeafPeer kind = "link-mute"        // the same, but the primary still hears the backup
	faultArbiter  kind = "arbiter"          // one host, or both, cannot reach the arbiter for a while
	faultIsland   kind = "link-and-arbiter" // link and arbiter are lost to the primary: the backup goes on
	faultFarAway  kind = "link-and-backup"  // link and arbiter are lost to the backup: the guest stays
	faultDark     kind = "link-and-all"     // link and arbiter are lost to both, and the arbiter comes back to one or both
)

// trait is what a round must know of a fault before it happens.
type trait struct {
	weight int  // how often it is drawn, compared with the others
	lossy  bool // what the guest sends meanwhile may be lost
}

func traits() map[kind]trait {
	return map[kind]trait{
		faultQEMU: {weight: 3}, faultHost: {weight: 4}, faultPower: {weight: 2}, faultFreeze: {weight: 4}, faultHiccup: {weight: 2},
		faultDaemon: {weight: 2, lossy: true}, faultLibvirtd: {weight: 1}, faultClients: {weight: 1},
		faultJob: {weight: 1}, faultSuspend: {weight: 1}, faultFailback: {weight: 4},
		faultBackup: {weight: 2}, faultBackLibv: {weight: 1}, faultBackHost: {weight: 2}, faultStandby: {weight: 2},
		faultLink: {weight: 2}, faultDeafHere: {weight: 2}, faultDeafPeer: {weight: 2},
		faultArbiter: {weight: 1}, faultIsland: {weight: 2}, faultFarAway: {weight: 2}, faultDark: {weight: 2},
	}
}

// faults returns all of them, sorted.
func faults() (ks []kind) {
	for k := range traits() {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// parseKinds reads a comma-separated list; empty means all.
func parseKinds(s string) ([]kind, error) {
	if s == "" {
		return faults(), nil
	}
	var ks []kind
	for _, word := range strings.Split(s, ",") {
		k := kind(strings.TrimSpace(word))
		if !slices.Contains(faults(), k) {
			return nil, fmt.Errorf("%q is none of %v", word, faults())
		}
		ks = append(ks, k)
	}
	return ks, nil
}

// draw takes one of ks, by weight.
func draw(ks []kind, rng *rand.Rand) kind {
	all, sum := traits(), 0
	for _, k := range ks {
		sum += all[k].weight
	}
	n := rng.IntN(sum)
	for _, k := range ks {
		if n -= all[k].weight; n < 0 {
			return k
		}
	}
	panic("chaos: the weights do not add up")
}
