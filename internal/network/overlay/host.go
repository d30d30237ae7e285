package overlay

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/nft"
)

// hostTable keeps the encapsulated packets out of the host's connection tracking: each connection inside a tunnel would
// be an entry of its own there, in one direction only, and cost a look-up for each packet.
func (d *Driver) hostTable() (nft.Table, nft.Content) {
	rule := nft.Join(nft.Is(nft.L4Proto, nft.UDP), nft.Is(nft.DstPort, nft.Port(d.cfg.Port)), nft.NoTrack())
	chain := func(name string, hook nft.Hook) nft.Chain {
		return nft.Chain{Name: name, Type: nft.TypeFilter, Hook: hook, Priority: nft.PriorityRaw, Rules: []nft.Rule{rule}}
	}
	return nft.Table{Family: nft.INet, Name: "sampan_vxlan_" + strconv.Itoa(d.cfg.Port)},
		nft.Content{Chains: []nft.Chain{chain("prerouting", nft.Prerouting), chain("output", nft.Output)}}
}

func (d *Driver) hostNFT() *nft.Conn {
	if d.cfg.Host != nil {
		return nft.Open(d.cfg.Host.FD())
	}
	return nft.Open(0)
}

// prepareHost does what all overlays need of the host, once.
func (d *Driver) prepareHost() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.prepared {
		return nil
	}
	table, content := d.hostTable()
	conn := d.hostNFT()
	tables, err := conn.Tables(table.Family)
	if err == nil && !slices.Contains(tables, table.Name) {
		err = conn.Do(func(tx *nft.Tx) error { tx.Add(table, content); return nil })
	}
	if err != nil {
		return fmt.Errorf("encapsulated packets out of connection tracking: %w", err)
	}
	if err := failpoint.Hit("network/overlay.host.table"); err != nil {
		return err
	}
	if d.cfg.Host != nil {
		err = d.cfg.Host.Do(func() error { return d.moreNeighbours() })
	} else {
		err = d.moreNeighbours()
	}
	d.prepared = err == nil
	return err
}

// neighbourLimits are what a host needs that has a hundred sandboxes which speak to a hundred others each: the kernel
// counts the neighbours of all namespaces together, and has 1024 as the most.
var neighbourLimits = [...]int{8 << 10, 32 << 10, 64 << 10}

// moreNeighbours raises the host's limits of neighbour entries, where they can be seen (in the first namespace) and are
// lower. It lowers none.
func (d *Driver) moreNeighbours() error {
	for i := len(neighbourLimits); i > 0; i-- { // the highest first: they must be in order at all times
		path := fmt.Sprintf("/proc/sys/net/ipv4/neigh/default/gc_thresh%d", i)
		b, err := os.ReadFile(path)
		if err != nil {
			return nil // a namespace of a host within a host
		}
		want := neighbourLimits[i-1]
		if have, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || have >= want {
			continue
		}
		if err := os.WriteFile(path, strconv.AppendInt(nil, int64(want), 10), 0o644); err != nil {
			d.cfg.Logger.Warn("the kernel's limit of neighbour entries stays low: many containers that speak to many others may lose packets", "error", err)
			return nil
		}
		d.cfg.Logger.Info("raised the kernel's limit of neighbour entries", slog.String("setting", path), slog.Int("to", want))
	}
	return nil
}

// leaveHost takes back what prepareHost put into the host's tables; the last network is gone.
func (d *Driver) leaveHost() error {
	table, _ := d.hostTable()
	conn := d.hostNFT()
	tables, err := conn.Tables(table.Family)
	if err == nil && slices.Contains(tables, table.Name) {
		err = conn.Do(func(tx *nft.Tx) error { tx.Delete(table); return nil })
	}
	if err != nil {
		return fmt.Errorf("encapsulated packets: %w", err)
	}
	d.prepared = false
	return nil
}
