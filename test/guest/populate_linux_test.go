package main

import "testing"

func TestSweepMeetsEveryPage(t *testing.T) {
	var met [sweepPages]bool
	at := uint32(0)
	for i := range met {
		if met[at] {
			t.Fatalf("page %d is met again after %d", at, i)
		}
		met[at] = true
		at = sweepNext(at)
	}
	if at != 0 {
		t.Errorf("the second round begins with page %d", at)
	}
}

func TestPopulateRefusesMoreThanIsFree(t *testing.T) {
	if a, err := populate(1 << 40); err == nil {
		t.Errorf("an exbibyte: %v", a)
	}
}
