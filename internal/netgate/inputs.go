package netgate

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// inputLog bounds what is logged of inputs between two cuts. Safe for
// concurrent use.
type inputLog struct {
	max             int
	logged, skipped atomic.Uint64 // frames

	mu      sync.Mutex
	again   sync.Cond // of mu: there was a cut, or stopped is set
	left    int       // bytes until the next cut
	stopped bool
}

func newInputLog(bytesMax int) *inputLog {
	l := &inputLog{max: bytesMax, left: bytesMax}
	l.again.L = &l.mu
	return l
}

// take asks for n bytes. After the first refusal nothing is given until the next
// cut: a log with holes is worth less than a short one.
func (l *inputLog) take(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left < n {
		l.left = 0
		l.skipped.Add(1)
		return false
	}
	l.left -= n
	l.logged.Add(1)
	return true
}

func (l *inputLog) cut() {
	l.mu.Lock()
	l.left = l.max
	l.mu.Unlock()
	l.again.Broadcast()
}

func (l *inputLog) stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.again.Broadcast()
}

// wait returns when something may be taken, or false when the log was stopped.
func (l *inputLog) wait() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.stopped && l.left == 0 {
		l.again.Wait()
	}
	return !l.stopped
}

const (
	etherAddrsBytes = 12 // both MAC addresses
	vlanTagBytes    = 4

	vnetNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	// offsets in struct virtio_net_hdr
	vnetFlags     = 0
	vnetGSOType   = 1
	vnetHdrLen    = 2
	vnetCsumStart = 6
)

// putTag puts the VLAN tag, which the kernel keeps beside a frame, back into it.
// b has vlanTagBytes of room, then header and frame; what it becomes begins at
// the start of b. The header's offsets move with what lies behind the tag.
func putTag(b []byte, tpid, tci uint16) {
	head := VnetHeaderBytes + etherAddrsBytes
	copy(b, b[vlanTagBytes:vlanTagBytes+head])
	binary.BigEndian.PutUint16(b[head:], tpid)
	binary.BigEndian.PutUint16(b[head+2:], tci)
	host := binary.NativeEndian
	if b[vnetFlags]&vnetNeedsCsum != 0 {
		host.PutUint16(b[vnetCsumStart:], host.Uint16(b[vnetCsumStart:])+vlanTagBytes)
	}
	if b[vnetGSOType] != 0 {
		host.PutUint16(b[vnetHdrLen:], host.Uint16(b[vnetHdrLen:])+vlanTagBytes)
	}
}
