package build

import (
	"time"
)

// Settings are what of a builder's work can be set. The zero value is Docker's own.
type Settings struct {
	NoGC bool // the cache is kept for ever
	// GC are the rules for what goes, the first first; nil: BuildKit's own, with the three sizes below where they are not 0.
	GC            []PruneRequest `json:",omitempty"`
	ReservedSpace int64          // bytes
	MaxUsedSpace  int64          // bytes
	MinFreeSpace  int64          // bytes
	NoHostNetwork bool           // steps are never on the host's network
	// What is remembered of builds done; both 0: BuildKit's own numbers.
	HistoryAge     time.Duration
	HistoryEntries int64
}
