package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network/ipam"
)

// checkSpec completes a spec and says what is wrong with it.
func checkSpec(s *Spec) error {
	if s.Driver == "" {
		s.Driver = DriverBridge
	}
	if s.IPAMDriver == "" {
		s.IPAMDriver = "default"
	}
	if !s.IPv4 && !s.IPv6 && !s.NoAddresses {
		s.IPv4 = true
	}
	switch {
	case strings.TrimSpace(s.Name) == "":
		return fault.New(fault.InvalidArgument, "invalid name: name is empty")
	case s.ConfigOnly && (s.Ingress || s.Internal || s.Attachable):
		return fault.New(fault.Forbidden, "configuration network can only contain network specific fields. "+
			"Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	case s.ConfigOnly && s.ConfigFrom != "":
		return fault.New(fault.Forbidden, "a configuration network cannot depend on another configuration network")
	case s.Driver == DriverHost || s.Driver == DriverNull:
		return fault.New(fault.Forbidden, "only one instance of %q network is allowed", s.Driver)
	case s.Driver == DriverOverlay:
		return fault.New(fault.Forbidden, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	case !slices.Contains([]string{DriverBridge, DriverMacvlan, DriverIPvlan}, s.Driver):
		return fault.New(fault.NotFound, "could not find plugin %s in v1 plugin registry: plugin not found", s.Driver)
	case s.IPAMDriver != "default" && s.IPAMDriver != "null":
		return fault.New(fault.InvalidArgument, "unknown IPAM driver %q: there is \"default\"", s.IPAMDriver)
	case s.IPAMDriver == "null" && (s.IPv4 || s.IPv6):
		return fault.New(fault.InvalidArgument, "ipv4 pool is empty: without address management (IPAM driver \"null\") a network has no addresses: turn IPv4 and IPv6 off")
	case s.Ingress:
		return fault.New(fault.Forbidden, "ingress networks are of the cluster: this one is of driver %s", s.Driver)
	}
	var errs []error
	for _, c := range s.IPAM {
		if r := (ipam.Request{Subnet: c.Subnet, Range: c.Range, Gateway: c.Gateway, Aux: c.Aux}); r.Given() {
			errs = append(errs, ipam.Check(r))
		}
	}
	return errors.Join(errs...)
}

// configured lays the configuration that a spec names under it; m.mu is held.
func (m *Manager) configured(s *Spec) error {
	if s.ConfigOnly {
		s.Driver = DriverNull // it is joined to nothing
	}
	if s.ConfigFrom == "" {
		return nil
	}
	from, err := m.find(s.ConfigFrom)
	if err != nil || !from.Spec.ConfigOnly {
		return fault.New(fault.NotFound, "configuration network %q does not exist", s.ConfigFrom)
	}
	if s.IPAMDriver != "default" || !s.IPv4 || s.IPv6 || len(s.Labels) > 0 || len(s.IPAM)+len(s.IPAMOptions) > 0 {
		return fault.New(fault.Forbidden, "user-specified configurations are not supported if the network depends on a configuration network")
	}
	if len(s.Options) > 0 {
		return fault.New(fault.Forbidden, "network driver options are not supported if the network depends on a configuration network")
	}
	c := from.Spec
	s.ConfigFrom = c.Name
	s.IPAMDriver, s.IPAM, s.IPv4, s.IPv6, s.NoAddresses = c.IPAMDriver, slices.Clone(c.IPAM), c.IPv4, c.IPv6, c.NoAddresses
	s.Options, s.Labels, s.IPAMOptions = maps.Clone(c.Options), maps.Clone(c.Labels), maps.Clone(c.IPAMOptions)
	return nil
}

// parseMark reads MARK or MARK/MASK, in any of Go's notations.
func parseMark(s string) (*markRule, error) {
	if s == "" {
		return nil, nil
	}
	value, mask, masked := strings.Cut(s, "/")
	if !masked {
		mask = "0xffffffff"
	}
	v, err := strconv.ParseUint(value, 0, 32)
	k, maskErr := strconv.ParseUint(mask, 0, 32)
	if err = errors.Join(err, maskErr); err != nil {
		return nil, fault.New(fault.InvalidArgument, "invalid firewall mark %q: want MARK or MARK/MASK: %w", s, err)
	}
	return &markRule{mask: uint32(k), value: uint32(v)}, nil
}

// addressPools are the configured pools, completed: Docker's for IPv4, and for IPv6 unique local space that this host
// chose at its first start (RFC 4193), so that its networks lie together and are not another host's.
func addressPools(cfg Config) ([]ipam.Pool, error) {
	var pools []ipam.Pool
	have4, have6 := false, false
	for _, p := range cfg.Pools {
		pools = append(pools, ipam.Pool(p))
		have4, have6 = have4 || p.Base.Addr().Is4(), have6 || p.Base.Addr().Is6()
	}
	if !have4 {
		pools = append(ipam.DefaultPools(), pools...)
	}
	if have6 {
		return pools, nil
	}
	base, err := localSpace(filepath.Join(cfg.DataRoot, "network", "unique-local"))
	if err != nil {
		return nil, err
	}
	return append(pools, ipam.Pool{Base: base, Size: 64}), nil
}

// localSpace reads this host's unique local space from a file, or chooses it.
func localSpace(file string) (netip.Prefix, error) {
	b, err := os.ReadFile(file)
	if err == nil {
		if p, perr := netip.ParsePrefix(strings.TrimSpace(string(b))); perr == nil && p.Bits() == 48 {
			return p, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, fmt.Errorf("unique local addresses: %w", err)
	}
	a := [16]byte{0: 0xfd}
	_, _ = rand.Read(a[1:6])
	p := netip.PrefixFrom(netip.AddrFrom16(a), 48)
	if err := os.WriteFile(file, []byte(p.String()+"\n"), 0o600); err != nil {
		return p, fmt.Errorf("unique local addresses: %w", err)
	}
	return p, nil
}
