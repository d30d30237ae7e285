package config

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// builderFile is "builder" in the configuration file, as dockerd has it. Names are found in any case.
type builderFile struct {
	GC struct {
		Enabled              *bool
		Policy               []gcRule
		DefaultReservedSpace string
		DefaultKeepStorage   string // its older name
		DefaultMaxUsedSpace  string
		DefaultMinFreeSpace  string
	}
	Entitlements struct {
		NetworkHost      *bool `json:"network-host"`
		SecurityInsecure *bool `json:"security-insecure"`
		Device           *bool `json:"device"`
	}
	History *struct {
		MaxAge     json.RawMessage // "48h", or seconds
		MaxEntries int64
	}
}

type gcRule struct {
	All           bool
	Filter        json.RawMessage // ["KEY=VALUE"], or an older form: {"KEY": {"VALUE": true}}
	ReservedSpace string
	KeepStorage   string // its older name
	MaxUsedSpace  string
	MinFreeSpace  string
}

// settings says the same in the builder's words; what has no effect is noted in c.
func (b *builderFile) settings(c *Config) (build.Settings, error) {
	var s build.Settings
	err := sizes(map[string]*int64{"gc.defaultReservedSpace": &s.ReservedSpace, "gc.defaultMaxUsedSpace": &s.MaxUsedSpace, "gc.defaultMinFreeSpace": &s.MinFreeSpace},
		map[string]string{"gc.defaultReservedSpace": cmp.Or(b.GC.DefaultReservedSpace, b.GC.DefaultKeepStorage), "gc.defaultMaxUsedSpace": b.GC.DefaultMaxUsedSpace, "gc.defaultMinFreeSpace": b.GC.DefaultMinFreeSpace})
	if err != nil {
		return s, err
	}
	s.NoGC = b.GC.Enabled != nil && !*b.GC.Enabled
	for _, r := range b.GC.Policy {
		p, err := r.prune()
		if err != nil {
			return s, err
		}
		s.GC = append(s.GC, p)
	}
	e := b.Entitlements
	s.NoHostNetwork = e.NetworkHost != nil && !*e.NetworkHost
	if e.SecurityInsecure != nil && *e.SecurityInsecure {
		return s, fault.New(fault.InvalidArgument, "entitlements.security-insecure cannot be had: no step of a build is privileged")
	}
	if e.Device != nil && *e.Device {
		c.note("entitlements.device: steps get no devices")
	}
	if h := b.History; h != nil {
		s.HistoryEntries = h.MaxEntries
		if s.HistoryAge, err = duration(h.MaxAge); err != nil {
			return s, fault.New(fault.InvalidArgument, "history.maxAge: %w", err)
		}
	}
	return s, nil
}

// duration reads a time as BuildKit does: "48h", or a number of seconds.
func duration(raw json.RawMessage) (time.Duration, error) {
	if len(raw) == 0 {
		return 0, nil
	}
	text := strings.Trim(string(raw), `"`)
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Duration(seconds) * time.Second, nil
	}
	return time.ParseDuration(text)
}

// sizes reads numbers of bytes with units.
func sizes(to map[string]*int64, texts map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if texts[name] == "" {
			continue
		}
		n, err := units.RAMInBytes(texts[name])
		if err != nil {
			return fault.New(fault.InvalidArgument, "failed to parse %s: %w", name, err)
		}
		*to[name] = n
	}
	return nil
}

// prune is the rule in the builder's words.
func (r *gcRule) prune() (build.PruneRequest, error) {
	p := build.PruneRequest{All: r.All}
	if err := sizes(map[string]*int64{"reservedSpace": &p.ReservedSpace, "maxUsedSpace": &p.MaxUsedSpace, "minFreeSpace": &p.MinFreeSpace},
		map[string]string{"reservedSpace": cmp.Or(r.ReservedSpace, r.KeepStorage), "maxUsedSpace": r.MaxUsedSpace, "minFreeSpace": r.MinFreeSpace}); err != nil {
		return p, err
	}
	var list []string
	if len(r.Filter) > 0 && json.Unmarshal(r.Filter, &list) != nil {
		var older map[string]map[string]bool
		if err := decode(r.Filter, &older); err != nil {
			return p, fault.New(fault.InvalidArgument, "gc.policy: filter: %w", err)
		}
		for name, values := range older {
			for v := range values {
				list = append(list, name+"="+v)
			}
		}
		slices.Sort(list)
	}
	for _, f := range list {
		name, v, _ := strings.Cut(f, "=")
		switch name, v = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(v); name {
		case "unused-for", "until":
			d, err := time.ParseDuration(v)
			if err != nil {
				return p, fault.New(fault.InvalidArgument, "gc.policy: filter %q: %w", f, err)
			}
			p.KeepDuration = d
		case "id":
			p.Filter = append(p.Filter, "id~="+v)
		case "parent", "type", "description", "mutable", "immutable", "inuse", "shared", "private":
			if v == "" || v == "true" && name != "description" {
				p.Filter = append(p.Filter, name)
			} else {
				p.Filter = append(p.Filter, name+"=="+v)
			}
		default:
			return p, fault.New(fault.InvalidArgument, "gc.policy: filter %q: there is no such filter", f)
		}
	}
	// BuildKit takes any of several filters, a rule means all of them.
	if len(p.Filter) > 1 {
		p.Filter = []string{strings.Join(p.Filter, ",")}
	}
	return p, nil
}
