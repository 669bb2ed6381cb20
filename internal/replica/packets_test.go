package replica

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// samplePackets are two frames of different interfaces.
func samplePackets() []Packet {
	arp := append(make([]byte, VnetHeaderBytes), "\xff\xff\xff\xff\xff\xff\x52\x54\x00\x00\x00\x01\x08\x06"...)
	return []Packet{{NIC: 0, Data: bytes.Clone(arp)}, {NIC: 0x0102, Data: append(arp, "who has"...)}}
}

func genPackets(t *rapid.T) []Packet {
	packets := make([]Packet, rapid.IntRange(1, 20).Draw(t, "packets"))
	for i := range packets {
		size := rapid.OneOf(rapid.IntRange(MinPacketBytes, 1526), rapid.SampledFrom([]int{MinPacketBytes, 8192})).Draw(t, "size")
		packets[i] = Packet{NIC: rapid.Uint16().Draw(t, "nic"), Data: bytes.Repeat([]byte{byte(i + 1)}, size)}
	}
	return packets
}

// TestBatch: whatever is cut into batches goes over the wire whole and in order,
// and a batch that could take one more packet does.
func TestBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := rapid.SampledFrom([]Type{TypeOutput, TypeInput}).Draw(t, "type")
		all := genPackets(t)
		for range rapid.IntRange(0, 10).Draw(t, "doublings") {
			all = append(all, all...)
		}
		data := make([]byte, MaxPacketBytes)
		for i := 0; i < len(all); i += 1 + rapid.IntRange(0, 2000).Draw(t, "gap") {
			all[i].Data = data
		}
		at := 0
		for rest := all; len(rest) > 0; {
			var batch []Packet
			batch, rest = Batch(typ, rest)
			if len(batch) == 0 {
				t.Fatal("no progress")
			}
			m := Message(&Output{batch})
			if typ == TypeInput {
				m = &Input{batch}
			}
			b, err := AppendMessage(nil, testHeader(), m)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) != HeaderBytes+packetsBytes(batch) || len(b) != cap(b) && cap(b) > 2*len(b) {
				t.Fatalf("%d bytes of %d for %d", len(b), cap(b), packetsBytes(batch))
			}
			if len(rest) > 0 && packetsBytes(batch)+packetHeadBytes+len(rest[0].Data) <= int(typ.MaxPayload()) && len(batch) < MaxPackets {
				t.Fatalf("a batch of %d bytes is not full", packetsBytes(batch))
			}
			back, err := DecodePayload(typ, b[HeaderBytes:])
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range packetsOf(back) {
				if p.NIC != all[at].NIC || !bytes.Equal(p.Data, all[at].Data) || cap(p.Data) != len(p.Data) {
					t.Fatalf("packet %d differs", at)
				}
				at++
			}
		}
		if at != len(all) {
			t.Fatalf("%d of %d packets arrived", at, len(all))
		}
	})
	if batch, rest := Batch(TypeOutput, nil); len(batch)+len(rest) != 0 {
		t.Error("a batch of nothing")
	}
}

func packetsOf(m Message) []Packet {
	switch m := m.(type) {
	case *Output:
		return m.Packets
	case *Input:
		return m.Packets
	}
	return nil
}

// TestPacketsAreNotCopied: the memory of a decoded message is its payload and
// one list, whatever number of packets it has; and the largest ones fit.
func TestPacketsAreNotCopied(t *testing.T) {
	smallest := Packet{Data: make([]byte, MinPacketBytes)}
	for _, packets := range [][]Packet{{smallest}, make([]Packet, MaxOutputBytes/minPacketWireSize-1), {{Data: make([]byte, MaxPacketBytes)}}} {
		for i := range packets {
			if packets[i].Data == nil {
				packets[i] = smallest
			}
		}
		b, err := AppendMessage(nil, testHeader(), &Output{packets})
		if err != nil {
			t.Fatal(err)
		}
		if allocs := testing.AllocsPerRun(10, func() {
			if _, err := DecodePayload(TypeOutput, b[HeaderBytes:]); err != nil {
				t.Error(err)
			}
		}); allocs > 3 {
			t.Errorf("%v allocations for %d packets", allocs, len(packets))
		}
	}
}

// TestOutputBetweenPagesAndEnd sends an epoch with outputs as the daemon does.
func TestOutputBetweenPagesAndEnd(t *testing.T) {
	sender, receiver := dataPair(t)
	runs, data := samplePages()
	sent := make(chan error, 1)
	go func() {
		ctx := context.Background()
		err := sender.SendPages(ctx, testStamp, runs, [][]byte{data}, nil)
		for _, m := range []Message{&Device{Blob: []byte("x")}, &Output{samplePackets()}, &Output{samplePackets()}, &EpochEnd{Pages: 2, Packets: 4}} {
			if err == nil {
				err = sender.Send(ctx, testStamp, m)
			}
		}
		sent <- err
	}()
	var packets uint64
	for {
		f, err := receiver.RecvPages(t.Context(), func(n int) []byte { return make([]byte, n) })
		if err != nil {
			t.Fatal(err)
		}
		if f.Stamp != testStamp {
			t.Fatalf("%s is stamped %+v", f.Type, f.Stamp)
		}
		switch m := f.Msg.(type) {
		case *Output:
			packets += uint64(len(m.Packets))
		case *EpochEnd:
			if m.Packets != packets || packets != 4 {
				t.Fatalf("%d packets arrived, %d were announced", packets, m.Packets)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// BenchmarkOutput moves full Outputs over loopback, Send to Recv, as many frames
// as one message holds. Beside MB/s it reports frames per second.
func BenchmarkOutput(b *testing.B) {
	for _, size := range []int{76, 1526, MaxPacketBytes} { // an ACK, a full frame, a segmentation super-frame
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var packets []Packet
			for n := 4; n+packetHeadBytes+size <= MaxOutputBytes; n += packetHeadBytes + size {
				packets = append(packets, Packet{Data: bytes.Repeat([]byte{byte(n)}, size)})
			}
			m := &Output{packets}
			sender, receiver := dataPair(b)
			move := newTurns(b, func() error { return sender.Send(context.Background(), testStamp, m) },
				func() error { _, err := receiver.Recv(context.Background()); return err })
			b.SetBytes(int64(packetsBytes(packets)))
			b.ResetTimer()
			var took time.Duration
			for done := 0; done < b.N; done += 64 {
				took += move(min(64, b.N-done))
			}
			b.ReportMetric(float64(len(packets)*b.N)/took.Seconds(), "frames/s")
		})
	}
}
