package builder

import (
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/entitlements"

	"github.com/sampan-cloud/sampan/internal/build"
)

// keepPolicy is how much of the cache is kept: what was set, else BuildKit's own rule, by the size of the disk.
func keepPolicy(root string, s build.Settings) []client.PruneInfo {
	var out []client.PruneInfo
	switch {
	case s.NoGC:
		return nil
	case s.GC != nil:
		for _, p := range s.GC {
			out = append(out, client.PruneInfo{All: p.All, Filter: p.Filter, KeepDuration: p.KeepDuration,
				ReservedSpace: p.ReservedSpace, MaxUsedSpace: p.MaxUsedSpace, MinFreeSpace: p.MinFreeSpace})
		}
		return out
	}
	stat, err := disk.GetDiskStat(root)
	if err != nil {
		return nil
	}
	size := func(n int64) config.DiskSpace { return config.DiskSpace{Bytes: n} }
	for _, p := range config.DefaultGCPolicy(config.GCConfig{GCReservedSpace: size(s.ReservedSpace), GCMaxUsedSpace: size(s.MaxUsedSpace),
		GCMinFreeSpace: size(s.MinFreeSpace)}, stat) {
		out = append(out, client.PruneInfo{All: p.All, Filter: p.Filters, KeepDuration: p.KeepDuration.Duration,
			ReservedSpace: p.ReservedSpace.AsBytes(stat), MaxUsedSpace: p.MaxUsedSpace.AsBytes(stat), MinFreeSpace: p.MinFreeSpace.AsBytes(stat)})
	}
	return out
}

// allowed are the rights that a build may ask for.
func allowed(s build.Settings) []string {
	if s.NoHostNetwork {
		return nil
	}
	return []string{string(entitlements.EntitlementNetworkHost)}
}

// historyConfig is how much is remembered of builds done; nil: BuildKit's own rule.
func historyConfig(s build.Settings) *config.HistoryConfig {
	if s.HistoryAge == 0 && s.HistoryEntries == 0 {
		return nil
	}
	c := &config.HistoryConfig{MaxAge: config.Duration{Duration: s.HistoryAge}}
	if s.HistoryEntries != 0 {
		c.MaxEntries = &s.HistoryEntries
	}
	return c
}
