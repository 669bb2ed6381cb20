package daemon

import (
	"sync"

	"github.com/virt-ft/virt-ft/internal/replica"
)

// stageIdleMax bounds the buffers that wait to be used again.
const stageIdleMax = 16

// stagePool keeps buffers of one Pages message for the epochs that follow.
// Safe for concurrent use.
type stagePool struct {
	mu   sync.Mutex
	idle [][]byte
}

// get returns n bytes, at most replica.MaxPageData.
func (p *stagePool) get(n int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.idle) - 1; i >= 0; i-- {
		if b := p.idle[i]; cap(b) >= n {
			p.idle[i] = p.idle[len(p.idle)-1]
			p.idle = p.idle[:len(p.idle)-1]
			return b[:n]
		}
	}
	return make([]byte, n, roundUp(n))
}

// roundUp makes sizes few, so that buffers fit again.
func roundUp(n int) int {
	size := 16 * replica.PageSize
	for size < n {
		size *= 4
	}
	return min(size, max(n, replica.MaxPageData))
}

func (p *stagePool) put(b []byte) {
	if cap(b) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) < stageIdleMax {
		p.idle = append(p.idle, b)
	}
}
