package etcdstate

import (
	"context"
	"time"
)

// Leader returns the leading member's ID and name (its node's ID), zero values when there is none.
func (s *Store) Leader() (id uint64, name string) {
	lead := s.server.Leader()
	if lead == 0 {
		return 0, ""
	}
	if m := s.server.Cluster().Member(lead); m != nil {
		name = m.Name
	}
	return uint64(lead), name
}

// Leadership returns a channel that first says whether this member leads, then every change; a slow reader gets the
// newest. It says true only once the mirror shows everything that earlier leaders have written. The channel is closed
// when ctx ends or the store is closed.
func (s *Store) Leadership(ctx context.Context) <-chan bool {
	out := make(chan bool)
	go func() {
		defer close(out)
		for first, told := true, false; ; {
			s.lead.mu.Lock()
			leading, changed := s.lead.now, s.lead.changed
			s.lead.mu.Unlock()
			send := out
			if !first && leading == told {
				send = nil
			}
			select {
			case send <- leading:
				first, told = false, leading
			case <-changed:
			case <-ctx.Done():
				return
			case <-s.ctx.Done():
				return
			}
		}
	}()
	return out
}

// IsLeader reports what Leadership says.
func (s *Store) IsLeader() bool {
	s.lead.mu.Lock()
	defer s.lead.mu.Unlock()
	return s.lead.now
}

// watchLeadership follows raft. Raft announces new leaders but not that one lost its quorum: so it is asked, too.
func (s *Store) watchLeadership() {
	ticker := time.NewTicker(tickMs * time.Millisecond)
	defer ticker.Stop()
	defer s.setLeading(false)
	for {
		changed := s.server.LeaderChangedNotify()
		leads := s.server.Leader() == s.server.MemberID()
		if leads && !s.IsLeader() {
			leads = s.Linearize(s.ctx) == nil && s.server.Leader() == s.server.MemberID()
		}
		s.setLeading(leads)
		select {
		case <-changed:
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		case <-s.server.StopNotify():
			return
		}
	}
}

func (s *Store) setLeading(leads bool) {
	s.lead.mu.Lock()
	defer s.lead.mu.Unlock()
	if s.lead.now == leads {
		return
	}
	s.lead.now = leads
	close(s.lead.changed)
	s.lead.changed = make(chan struct{})
}

// StepDown hands leadership to another member if this one has it, so that its removal costs no election.
func (s *Store) StepDown() error { return s.server.TryTransferLeadershipOnShutdown() }
