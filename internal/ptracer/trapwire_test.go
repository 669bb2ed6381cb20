package ptracer

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTrapOrderRoundTrip(t *testing.T) {
	var o, got trapOrder
	o.set(7, Change{Arg1: 1 << 40, Data: []byte("0123456789"), NotBelow: true, WantResult: true})
	b := make([]byte, trapOrderBytes)
	o.put(b)
	if !got.parse(b) || !reflect.DeepEqual(o, got) {
		t.Errorf("%+v became %+v", o, got)
	}
	if got.parse(b[:len(b)-1]) {
		t.Error("a short order is taken")
	}
	b[7] = 1 // a length beyond the data
	if got.parse(b) {
		t.Error("an order with too much data is taken")
	}
}

func TestTrapReplyRoundTrip(t *testing.T) {
	b := make([]byte, trapReplyBytes)
	r := trapReply{kind: replyDone, flags: flagCaught | flagResult, stops: 3, seq: 9, ret: -22, attached: time.Millisecond}
	copy(r.before[:], "before")
	copy(r.after[:], "after!")
	var got trapReply
	r.put(b)
	if err := got.parse(b); err != nil || !reflect.DeepEqual(r, got) {
		t.Errorf("%+v became %+v, %v", r, got, err)
	}
	c := got.caught(6)
	if string(c.Before) != "before" || string(c.After) != "after!" || c.Ret != -22 || c.Changed {
		t.Errorf("caught %+v", c)
	}
	failed := trapReply{kind: replyFailed, seq: 9, failure: report{Op: "stop", Failure: ErrGone.Error(), Detail: strings.Repeat("x", 5*TrapDataMax)}}
	failed.put(b)
	if err := got.parse(b); err != nil || got.failure.Op != "stop" || !strings.HasPrefix(got.failure.Detail, "xxx") {
		t.Errorf("%+v, %v", got.failure, err)
	}
}

func TestTracerArgs(t *testing.T) {
	want := Catch{Nr: 16, Arg0: 1, Arg1: 1<<64 - 1, DataBytes: 48}
	args := tracerArgs(42, want, time.Second)
	pid, c, bound, err := parseTracerArgs(args)
	if pid != 42 || c != want || bound != time.Second || err != nil {
		t.Error(pid, c, bound, err)
	}
	for i := range args {
		bad := append([]string(nil), args...)
		bad[i] = "-"
		if _, _, _, err := parseTracerArgs(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, _, _, err := parseTracerArgs(args[1:]); err == nil {
		t.Error("too few are taken")
	}
}

func FuzzTrapReply(f *testing.F) {
	b := make([]byte, trapReplyBytes)
	(&trapReply{kind: replyDone, flags: flagCaught}).put(b)
	f.Add(bytes.Clone(b))
	(&trapReply{kind: replyFailed, failure: report{Op: "x"}}).put(b)
	f.Add(bytes.Clone(b))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r, again trapReply
		if r.parse(data) != nil {
			return
		}
		r.caught(TrapDataMax)
		b := make([]byte, trapReplyBytes)
		r.put(b)
		if err := again.parse(b); err != nil || again.kind != r.kind || again.seq != r.seq {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}
