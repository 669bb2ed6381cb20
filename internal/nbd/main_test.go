package nbd

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	MaybeGuard()
	maybeServe()
	os.Exit(m.Run())
}
