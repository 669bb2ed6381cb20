package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

const (
	// walkBytes is the memory that "walk" and "write" go through, lineBytes how
	// far apart the words are that they touch, and walkPiece how many lines make
	// a piece of work.
	walkBytes = 8 << 20
	lineBytes = 64
	walkPiece = 1 << 14
	// integerPiece is how many steps of a generator make a piece of work.
	integerPiece = 1 << 16

	chatBytes   = 64
	chatEveryMs = 1000 // at most
	// bulkGet and bulkPut are what a client of the bulk service says first.
	bulkGet, bulkPut = 'g', 'p'
	bulkChunkBytes   = 64 << 10
	bulkClientsMax   = 4
)

// workKinds are the kinds of work: each returns a function that does one piece.
// A piece is always as much work, so pieces over the time of another clock than
// the guest's say how fast the guest was.
//
//	count    nothing but the counting, to see from outside when the guest stands still
//	integer  a pseudo-random generator, in registers
//	walk     reads a word of every line of 8 MiB
//	write    changes it, and so makes 2048 pages dirty in each round
func workKinds() map[string]func() (func(), error) {
	return map[string]func() (func(), error){
		"count": func() (func(), error) { return func() {}, nil },
		"integer": func() (func(), error) {
			x := seed(1, 1)
			return func() {
				for range integerPiece {
					x = next(x)
				}
			}, nil
		},
		"walk":  func() (func(), error) { return walker(func(w *uint64, x uint64) uint64 { return x ^ *w }) },
		"write": func() (func(), error) { return walker(func(w *uint64, x uint64) uint64 { *w += x; return x + 2 }) },
	}
}

// walker goes through memory of its own, which stays mapped: there is one for
// each kind that was ever asked for, and a guest lives for minutes.
func walker(touch func(w *uint64, x uint64) uint64) (func(), error) {
	mem, err := anonymous(walkBytes)
	if err != nil {
		return nil, err
	}
	for i := range mem[:walkBytes/pageBytes] {
		mem[i*pageBytes] = byte(i) // a page of its own behind each, not the kernel's zero page
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), walkBytes/8)
	at, x := 0, uint64(1)
	return func() {
		for range walkPiece {
			x = touch(&words[at], x)
			at = (at + lineBytes/8) & (len(words) - 1)
		}
	}, nil
}

// worker gives the guest something to do for measurements from outside. Safe
// for concurrent use; the zero value does nothing.
//
//	work cpu KIND             does pieces of work, and counts them in the beacon page
//	work chat ADDR:PORT MS    sends a small datagram every MS milliseconds
//	work bulk PORT            serves bulk TCP on a port; 0: on any
//	work off                  ends all of it but the service
type worker struct {
	mu    sync.Mutex
	kinds map[string]func() // made so far; one goroutine at a time uses each
	runs  map[string]job    // what runs: "cpu", "chat"
	bulk  *net.TCPListener
}

// job is one goroutine.
type job struct{ stop, done chan struct{} }

func (w *worker) run(counter *uint64, words []string) (map[string]any, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(words) == 2 && words[0] == "cpu":
		return w.cpu(words[1], counter)
	case len(words) == 3 && words[0] == "chat":
		return w.chat(words[1], words[2])
	case len(words) == 2 && words[0] == "bulk":
		return w.serve(words[1])
	case len(words) == 1 && words[0] == "off":
		for what := range w.runs {
			w.end(what)
		}
		return map[string]any{"ok": true}, nil
	}
	return nil, errors.New("work: not one of cpu KIND, chat ADDR:PORT MS, bulk PORT, off")
}

// begin runs f in the place of what else is of its sort, until it is ended.
func (w *worker) begin(what string, f func(stop <-chan struct{})) {
	w.end(what)
	if w.runs == nil {
		w.runs = map[string]job{}
	}
	j := job{make(chan struct{}), make(chan struct{})}
	w.runs[what] = j
	go func() {
		defer close(j.done)
		f(j.stop)
	}()
}

// end returns when nothing of a sort runs any more.
func (w *worker) end(what string) {
	if j, runs := w.runs[what]; runs {
		close(j.stop)
		<-j.done
		delete(w.runs, what)
	}
}

func (w *worker) cpu(kind string, counter *uint64) (map[string]any, error) {
	piece, made := w.kinds[kind]
	if !made {
		prepare, known := workKinds()[kind]
		if !known {
			return nil, fmt.Errorf("work cpu: no kind %q", kind)
		}
		var err error
		if piece, err = prepare(); err != nil {
			return nil, fmt.Errorf("work cpu: %w", err)
		}
		if w.kinds == nil {
			w.kinds = map[string]func(){}
		}
		w.kinds[kind] = piece
	}
	// One processor for the work, and another for all else that this program
	// does: the kernel gives way at once where Go's scheduler would let others
	// wait for 10 ms.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), runtime.NumCPU()+1))
	w.begin("cpu", func(stop <-chan struct{}) {
		for {
			select {
			case <-stop:
				return
			default:
				piece()
				atomic.AddUint64(counter, 1)
			}
		}
	})
	return map[string]any{"kind": kind}, nil
}

func (w *worker) chat(to, every string) (map[string]any, error) {
	addr, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, fmt.Errorf("work chat: %w", err)
	}
	ms, err := number(every, chatEveryMs)
	if err != nil || ms == 0 {
		return nil, fmt.Errorf("work chat: %q is not a number of milliseconds from 1 to %d", every, chatEveryMs)
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("work chat: %w", err)
	}
	w.begin("chat", func(stop <-chan struct{}) {
		defer conn.Close()
		ticker := time.NewTicker(time.Duration(ms) * time.Millisecond)
		defer ticker.Stop()
		text := make([]byte, chatBytes)
		for n := uint64(0); ; n++ {
			select {
			case <-stop:
				return
			case <-ticker.C:
				binary.BigEndian.PutUint64(text, n)
				_, _ = conn.Write(text) // whoever listens counts what arrives
			}
		}
	})
	return map[string]any{"to": addr.String(), "every_ms": ms}, nil
}

// serve opens the bulk service, once.
func (w *worker) serve(port string) (map[string]any, error) {
	n, err := number(port, 1<<16-1)
	if err != nil {
		return nil, fmt.Errorf("work bulk: %w", err)
	}
	if w.bulk == nil {
		if w.bulk, err = net.ListenTCP("tcp4", &net.TCPAddr{Port: n}); err != nil {
			return nil, fmt.Errorf("work bulk: %w", err)
		}
		go serveBulk(w.bulk)
	}
	return map[string]any{"port": w.bulk.Addr().(*net.TCPAddr).Port}, nil
}

func serveBulk(l net.Listener) {
	slots := make(chan struct{}, bulkClientsMax)
	for {
		slots <- struct{}{}
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-slots
			continue
		}
		go func() {
			defer func() { conn.Close(); <-slots }()
			bulk(conn)
		}()
	}
}

// bulk obeys one client: "g" sends until the client closes, "p" takes what comes
// and, when the client has said all, answers how many bytes that were, as 8 bytes
// big endian.
func bulk(conn net.Conn) {
	var what [1]byte
	if _, err := io.ReadFull(conn, what[:]); err != nil {
		return
	}
	chunk := make([]byte, bulkChunkBytes)
	switch what[0] {
	case bulkGet:
		for i := range chunk {
			chunk[i] = byte(i)
		}
		for {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	case bulkPut:
		for total := uint64(0); ; {
			n, err := conn.Read(chunk)
			total += uint64(n)
			if errors.Is(err, io.EOF) {
				_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, total)) // or the client is gone
				return
			}
			if err != nil {
				return
			}
		}
	}
}
