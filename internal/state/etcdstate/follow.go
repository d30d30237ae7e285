package etcdstate

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/sampan-cloud/sampan/internal/state/mirror"
)

// The whole of etcd's keys: nobody else writes here, and the mirror's revision must follow every write.
var allFrom, allTo = []byte{0}, []byte{}

// load copies what this member has into the mirror.
func (s *Store) load() (rev int64, err error) {
	r, err := s.server.KV().Range(s.ctx, allFrom, allTo, mvcc.RangeOptions{})
	if err != nil {
		return 0, fmt.Errorf("read the cluster's state: %w", err)
	}
	all := make([]mirror.Change, 0, len(r.KVs))
	for _, kv := range r.KVs {
		value, err := s.seal.open(string(kv.Key), kv.Value)
		if err != nil {
			return 0, fmt.Errorf("read the cluster's state: %w", err)
		}
		all = append(all, mirror.Change{Key: string(kv.Key), Value: value, Revision: uint64(kv.ModRevision)})
	}
	s.mirror.Reset(uint64(r.Rev), all)
	return r.Rev, nil
}

// CaughtUp returns a channel that is closed when the mirror shows everything that was committed anywhere before Open. What
// it shows until then is what this member has on disk, which may be older, even where it is the only member: etcd writes
// down what it has applied now and then, and applies the rest of its log anew.
func (s *Store) CaughtUp() <-chan struct{} { return s.caughtUp }

func (s *Store) catchUp() {
	for s.ctx.Err() == nil {
		if s.Linearize(s.ctx) == nil {
			close(s.caughtUp)
			return
		}
	}
}

// follow feeds the mirror from one watch. When what it has not seen yet has been compacted (this member was far behind
// and received a snapshot), it loads everything anew and goes on from there.
func (s *Store) follow(rev int64) {
	for s.ctx.Err() == nil {
		if err := s.watch(rev + 1); err != nil {
			s.logger.Warn("the watch on the cluster's state broke; reading all of it anew", "error", err)
		}
		if s.ctx.Err() != nil {
			return
		}
		var err error
		if rev, err = s.load(); err != nil {
			s.logger.Error("the cluster's state cannot be read", "error", err)
			return
		}
	}
}

func (s *Store) watch(from int64) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream := s.server.Watchable().NewWatchStream()
	defer stream.Close()
	if _, err := stream.Watch(ctx, 0, allFrom, allTo, from); err != nil {
		return err
	}
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case r, ok := <-stream.Chan():
			switch {
			case !ok:
				return fmt.Errorf("stream closed")
			case r.CompactRevision != 0:
				return fmt.Errorf("revisions up to %d are compacted", r.CompactRevision)
			}
			s.apply(r.Events)
		}
	}
}

// apply hands the events on revision by revision: what one transaction wrote becomes visible at once.
func (s *Store) apply(events []*mvccpb.Event) {
	for start := 0; start < len(events); {
		rev := events[start].Kv.ModRevision
		var changes []mirror.Change
		end := start
		for ; end < len(events) && events[end].Kv.ModRevision == rev; end++ {
			e := events[end]
			c := mirror.Change{Key: string(e.Kv.Key), Revision: uint64(rev)}
			if e.Type == mvccpb.Event_PUT {
				value, err := s.seal.open(c.Key, e.Kv.Value)
				if err != nil {
					s.logger.Error("something in the cluster's state cannot be read; it is ignored", "error", err)
					continue
				}
				c.Value = value
			}
			changes = append(changes, c)
		}
		s.mirror.Apply(uint64(rev), changes)
		start = end
	}
}
