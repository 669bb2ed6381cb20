package virt

import (
	"os"
	"testing"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

func TestMain(m *testing.M) {
	MaybeWake()
	virttest.MaybeInit()
	os.Exit(m.Run())
}
