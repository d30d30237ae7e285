package etcdstate

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// electSelf makes the only voter lead at once. Raft would wait for up to an election timeout although nobody else could
// be elected: half of what `swarm init` takes. It is for a new member only. One that still applies what it finds in its
// log may panic when it is told to stand: Raft then looks through the entries that it counts as not applied, and if its
// loop is held up between handing them out and noting so, they may have been applied, put into a snapshot and compacted.
func (s *Store) electSelf() {
	self := uint64(s.server.MemberID())
	for _, m := range s.Members() {
		if m.ID != self && !m.Learner {
			return
		}
	}
	s.logger.Debug(standsAtOnce)
	// It is refused until Raft has applied its first change of membership.
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for range electionMs / 5 {
		if s.server.Leader() != 0 {
			return
		}
		if err := s.server.Process(s.ctx, &raftpb.Message{
			Type: raftpb.MsgTimeoutNow.Enum(), From: new(self), To: new(self),
		}); err != nil {
			return // it elects itself in its own time
		}
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
	}
}

const standsAtOnce = "the only member of the replicated state stands for election at once"
