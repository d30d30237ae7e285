package image

import (
	"cmp"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Limits bound the traffic with registries. 0 is Docker's own number.
type Limits struct {
	Downloads int // at once, of one pull: 3
	Uploads   int // at once, of one push: 5
	Attempts  int // at a layer, without a single byte in between: 5
}

// Validate says what is wrong with the limits, by the names of dockerd's options.
func (l *Limits) Validate() error {
	for _, n := range []struct {
		name string
		n    int
	}{{"max-concurrent-downloads", l.Downloads}, {"max-concurrent-uploads", l.Uploads}, {"max-download-attempts", l.Attempts}} {
		if n.n < 0 {
			return fault.New(fault.InvalidArgument, "%s: invalid value %d: want a positive number", n.name, n.n)
		}
	}
	return nil
}

// OrDefaults returns the limits with Docker's numbers in place of 0.
func (l Limits) OrDefaults() Limits {
	return Limits{Downloads: cmp.Or(l.Downloads, 3), Uploads: cmp.Or(l.Uploads, 5), Attempts: cmp.Or(l.Attempts, 5)}
}

// SetLimits replaces the limits, for pulls and pushes that begin from now on.
func (s *Store) SetLimits(l Limits) error {
	if err := l.Validate(); err != nil {
		return err
	}
	l = l.OrDefaults()
	s.limits.Store(&l)
	return nil
}

// SetRegistries replaces the mirrors and the insecure registries, for requests that begin from now on.
func (s *Store) SetRegistries(mirrors, insecure []string) error {
	cfg := s.cfg
	cfg.Mirrors, cfg.Insecure = mirrors, insecure
	hub, err := newRegistries(cfg)
	if err != nil {
		return err
	}
	old := s.hub.Swap(hub)
	old.secure.CloseIdleConnections()
	old.insecure.CloseIdleConnections()
	return nil
}

// CheckRegistries says what is wrong with mirrors and insecure registries.
func CheckRegistries(mirrors, insecure []string) error {
	_, err := newRegistries(Config{Mirrors: mirrors, Insecure: insecure})
	return err
}
