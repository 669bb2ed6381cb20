package zcstream_test

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// A page is written again only when done has given it back.
func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	dialed, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	accepted, err := ln.Accept()
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	sender, receiver := zcstream.NewSender(dialed), zcstream.NewReceiver(accepted)
	defer receiver.Close()

	var group sync.WaitGroup
	group.Go(func() {
		free := make(chan []byte, 2) // two pages take turns
		free <- make([]byte, 64<<10)
		free <- make([]byte, 64<<10)
		for n := range 6 {
			page := <-free // nobody else has it
			page[0] = byte(n)
			giveBack := func(error) { free <- page }
			if err := sender.Send(ctx, giveBack, []byte("page"), page); err != nil {
				fmt.Println(err)
				return
			}
		}
		if err := sender.Drain(ctx); err != nil { // all pages are ours again
			fmt.Println(err)
		}
		sender.Close()
	})

	head, page := make([]byte, 4), make([]byte, 64<<10)
	for range 6 {
		if _, err := receiver.ReadVec(ctx, [][]byte{head, page}); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(string(head), page[0])
	}
	group.Wait()
	// Output:
	// page 0
	// page 1
	// page 2
	// page 3
	// page 4
	// page 5
}
