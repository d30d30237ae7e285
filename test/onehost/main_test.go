// Package onehost drives one real sampand with the stock docker command, as a user of a single host would.
package onehost

import (
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

const image = labtest.Image

// one makes a host for a test.
func one(t *testing.T) (*testhost.Lab, *testhost.Host) {
	t.Helper()
	t.Parallel()
	l := labtest.New(t, 1)
	return l, l.Hosts[0]
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func contains(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: %q is not in\n%s", what, w, got)
		}
	}
}
