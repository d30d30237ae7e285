package doctor

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/nft"
	"github.com/sampan-cloud/sampan/internal/sys/thread"
)

// TestForeignDropIsNamed: of the chains of a host, those of other programs whose policy loses forwarded packets are named,
// and no other.
func TestForeignDropIsNamed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	err := thread.Throwaway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		chain := func(name string, hook nft.Hook, drop bool) nft.Chain {
			return nft.Chain{Name: name, Type: nft.TypeFilter, Hook: hook, Priority: nft.PriorityFilter, PolicyDrop: drop}
		}
		// A descriptor of the namespace of this thread, which is not the process'.
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := nft.Open(fd).Do(func(tx *nft.Tx) error {
			tx.Add(nft.Table{Family: nft.IP4, Name: "filter"}, nft.Content{Chains: []nft.Chain{
				chain("FORWARD", nft.Forward, true), chain("INPUT", nft.Input, true), chain("open", nft.Forward, false)}})
			tx.Add(nft.Table{Family: nft.INet, Name: "sampan"}, nft.Content{Chains: []nft.Chain{chain("forward", nft.Forward, true)}})
			return nil
		}); err != nil {
			return err
		}
		got, err := droppingChains()
		if want := []Chain{{Family: "ip", Table: "filter", Name: "FORWARD"}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
