//go:build !linux

package zcstream

import (
	"context"
	"net"
)

// zeroCopy is for Linux only.
type zeroCopy struct{}

func newZeroCopy(net.Conn, Options) (*zeroCopy, string) { return nil, "needs Linux" }

func (*zeroCopy) write([][]byte) (int, *loan, error)    { return 0, nil, nil }
func (*zeroCopy) settle(*loan, func(error), error) bool { return true }
func (*zeroCopy) repaid(*loan)                          {}
func (*zeroCopy) kick(_, _ bool)                        {}
func (*zeroCopy) drain(ctx context.Context) error       { return ctx.Err() }
func (*zeroCopy) snapshot(st Stats) Stats               { return st }

// scatter is for Linux only.
type scatter struct{}

func newScatter(net.Conn) *scatter { return nil }

func (*scatter) read(*cargo, []byte) (int, error) { return 0, nil }
func (*scatter) interrupt()                       {}
func (*scatter) close()                           {}
