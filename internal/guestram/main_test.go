package guestram

import (
	"os"
	"testing"

	"github.com/virt-ft/virt-ft/internal/ptracer"
)

func TestMain(m *testing.M) {
	ptracer.MaybeInject()
	os.Exit(m.Run())
}
