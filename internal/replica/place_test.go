package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestReceiveInPlace: over a real connection, pages arrive in the pieces that place
// gives, whatever these are and however the sender cut its data, and nowhere else.
func TestReceiveInPlace(t *testing.T) {
	a, b := dataPair(t)
	rapid.Check(t, func(t *rapid.T) {
		runs, data, cut := genPages(t)
		sent := make(chan error, 1)
		go func() {
			if err := a.SendPages(context.Background(), testStamp, runs, cut, func(err error) { sent <- err }); err != nil {
				t.Errorf("SendPages: %v", err)
			}
		}()
		const canary = 0x5c
		memory := bytes.Repeat([]byte{canary}, len(data)+2*PageSize)
		place := memory[PageSize:][:len(data)]
		f, err := b.RecvInto(context.Background(), func(f Frame, n int) ([][]byte, error) {
			if n != len(data) || !reflect.DeepEqual(f.Msg, &Pages{runs}) {
				t.Fatalf("a place of %d bytes for %+v", n, f.Msg)
			}
			return cutAt(t, place), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if f.Data != nil || f.Packed != 0 || f.Type != TypePages || !bytes.Equal(place, data) {
			t.Fatalf("%+v arrived otherwise", f.Header)
		}
		rest := append(bytes.Clone(memory[:PageSize]), memory[PageSize+len(data):]...)
		if len(bytes.Trim(rest, string(rune(canary)))) > 0 {
			t.Fatal("something was written beside the place")
		}
	})
}

// TestManySmallPieces: more of them than one system call takes.
func TestManySmallPieces(t *testing.T) {
	a, b := dataPair(t)
	data := text(9, MaxPageData, true)
	go func() {
		_ = a.SendPages(context.Background(), testStamp, []Run{{Pages: MaxPageData / PageSize}}, [][]byte{data}, nil)
	}()
	got := make([]byte, len(data))
	if _, err := b.RecvInto(t.Context(), func(Frame, int) ([][]byte, error) {
		var pieces [][]byte
		for rest := got; len(rest) > 0; {
			n := min(len(rest), 1+len(pieces)%97)
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		return pieces, nil
	}); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%v", err)
	}
}

// TestPlaceRefuses: what place answers that is no place of the right size ends the
// connection, for packed data too, and its own error is the cause.
func TestPlaceRefuses(t *testing.T) {
	ours := errors.New("beyond the guest's memory")
	for name, place := range map[string]Place{
		"none":    nil,
		"error":   func(Frame, int) ([][]byte, error) { return nil, fmt.Errorf("run 0: %w", ours) },
		"nowhere": func(Frame, int) ([][]byte, error) { return nil, nil },
		"short":   func(_ Frame, n int) ([][]byte, error) { return [][]byte{make([]byte, n-1)}, nil },
		"long":    func(_ Frame, n int) ([][]byte, error) { return [][]byte{make([]byte, n), {0}}, nil },
	} {
		for _, packed := range []bool{false, true} {
			c, _ := wireConn(DataChannel)
			runs, data := samplePages()
			var err error
			if packed {
				err = c.SendPacked(t.Context(), testStamp, runs, len(data), samplePacked())
			} else {
				err = c.SendPages(t.Context(), testStamp, runs, [][]byte{data}, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.RecvInto(t.Context(), place)
			var ce *ConnError
			if !errors.As(err, &ce) || name == "error" != errors.Is(err, ours) || name == "none" != errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %v", name, err)
			}
			if _, again := c.Recv(t.Context()); again != err {
				t.Errorf("%s: the connection was not dead after it: %v", name, again)
			}
		}
	}
}

// TestZeroRunsNeedNoPlace: nobody is asked where nothing goes.
func TestZeroRunsNeedNoPlace(t *testing.T) {
	c, _ := wireConn(DataChannel)
	runs := []Run{{Pages: 5, Flags: RunZero}}
	if err := c.SendPages(t.Context(), testStamp, runs, nil, nil); err != nil {
		t.Fatal(err)
	}
	f, err := c.RecvInto(t.Context(), nil)
	if err != nil || !reflect.DeepEqual(f.Msg, &Pages{runs}) {
		t.Errorf("%+v, %v", f.Msg, err)
	}
}

// TestTablesAreNotShared: what was received stays as it is when the Conn reuses its
// memory for the next message.
func TestTablesAreNotShared(t *testing.T) {
	c, _ := wireConn(DataChannel)
	first, second := []Run{{Block: 1, Pages: 1, Off: PageSize}}, []Run{{Block: 2, Pages: 1, Off: 7 * PageSize}}
	data := [][]byte{make([]byte, PageSize)}
	var got []Frame
	for _, runs := range [][]Run{first, second} {
		if err := c.SendPages(t.Context(), testStamp, runs, data, nil); err != nil {
			t.Fatal(err)
		}
		f, err := c.RecvPages(t.Context(), func(n int) []byte { return make([]byte, n) })
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, f)
	}
	if !reflect.DeepEqual(got[0].Msg, &Pages{first}) || !reflect.DeepEqual(got[1].Msg, &Pages{second}) {
		t.Errorf("%+v, %+v", got[0].Msg, got[1].Msg)
	}
}
