package doctor

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/sys/thread"
)

func diskFree(path string) (free, total uint64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, 0, err
	}
	size := uint64(s.Bsize) //nolint:gosec,unconvert // positive; its type differs by architecture
	return s.Bavail * size, s.Blocks * size, nil
}

// tryNetwork makes one of each feature in a network namespace that lives as long as the thread it is made on.
func tryNetwork(features []string) (map[string]error, error) {
	failed := map[string]error{}
	err := thread.Throwaway(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		for _, name := range features {
			failed[name] = tryFeature(name)
		}
		return nil
	})
	return failed, err
}

func tryFeature(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "try-" + name
	switch name {
	case "veth":
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "try-peer"})
	case "bridge":
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	case "vxlan":
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 4097, Port: 4789})
	case "macvlan":
		return onParent(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
	case "ipvlan":
		return onParent(&netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2})
	case "vlan":
		return onParent(&netlink.Vlan{LinkAttrs: attrs, VlanId: 2, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	case "nft socket":
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "try-socket", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "raw", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Socket{Key: expr.SocketKeyWildcard, Register: unix.NFT_REG_1}}})
		return c.Flush()
	case "nftables":
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "try", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Name: "nat", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		if err := c.AddSet(&nftables.Set{Name: "map", Table: table, IsMap: true, KeyType: nftables.TypeInetService, DataType: nftables.TypeIPAddr}, nil); err != nil {
			return err
		}
		return c.Flush()
	}
	return fmt.Errorf("unknown feature %q", name)
}

// onParent makes an interface on top of another, which is made for it.
func onParent(l netlink.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "under-" + l.Type()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer-" + l.Type()}); err != nil {
		return fmt.Errorf("make a parent: %w", err)
	}
	parent, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	l.Attrs().ParentIndex = parent.Attrs().Index
	return netlink.LinkAdd(l)
}

var families = map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}

// droppingChains looks at this host's own firewall. Sampan's tables are left out.
func droppingChains() ([]Chain, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, err
	}
	var out []Chain
	for _, ch := range chains {
		if ch.Hooknum == nil || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop || *ch.Hooknum != *nftables.ChainHookForward ||
			families[ch.Table.Family] == "" || strings.HasPrefix(ch.Table.Name, "sampan") {
			continue
		}
		out = append(out, Chain{Family: families[ch.Table.Family], Table: ch.Table.Name, Name: ch.Name})
	}
	return out, nil
}
