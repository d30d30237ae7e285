package etcdstate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Member is a manager's part in the replicated state.
type Member struct {
	ID      uint64
	Name    string // its node's ID
	PeerURL string
	Learner bool // receives the state, has no vote yet
}

// MemberID returns this member's ID.
func (s *Store) MemberID() uint64 { return uint64(s.server.MemberID()) }

// Members lists the members as this one knows them, ordered by ID.
func (s *Store) Members() []Member {
	var out []Member
	for _, m := range s.server.Cluster().Members() {
		out = append(out, memberOf(m))
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func memberOf(m *membership.Member) Member {
	out := Member{ID: uint64(m.ID), Name: m.Name, Learner: m.IsLearner}
	if len(m.PeerURLs) > 0 {
		out.PeerURL = m.PeerURLs[0]
	}
	return out
}

// AddLearner adds a member that is about to be started with an empty folder, and returns its ID and what its Config's
// InitialCluster must be. A member of the same name or address is from an attempt that failed, and is replaced.
func (s *Store) AddLearner(ctx context.Context, name, peerURL string) (id uint64, initialCluster string, err error) {
	urls, err := types.NewURLs([]string{peerURL})
	if err != nil {
		return 0, "", fault.New(fault.InvalidArgument, "peer URL %q: %w", peerURL, err)
	}
	s.reconfigure.Lock()
	defer s.reconfigure.Unlock()
	if err := s.Linearize(ctx); err != nil {
		return 0, "", err
	}
	voters := 0
	for _, m := range s.Members() {
		switch {
		case m.Name == name || m.PeerURL == peerURL:
			if m.ID == s.MemberID() {
				return 0, "", fault.New(fault.Conflict, "the address %s is that of the manager asked itself: every manager needs its own", peerURL)
			}
			if err := s.change(ctx, func(ctx context.Context) error {
				_, err := s.server.RemoveMember(ctx, m.ID)
				return err
			}); err != nil {
				return 0, "", err
			}
		default:
			voters++
		}
	}
	if voters >= maxMembers {
		return 0, "", fault.New(fault.FailedPrecondition, "the cluster has %d managers already, which is the most it can have: demote one first, or join as a worker", voters)
	}
	var m *membership.Member
	for born := time.Now(); ; born = born.Add(time.Second) {
		m = membership.NewMemberAsLearner(name, urls, "", &born)
		err := s.change(ctx, func(ctx context.Context) error {
			_, err := s.server.AddMember(ctx, *m)
			if errors.Is(err, membership.ErrIDExists) {
				return nil // an attempt before this one came through
			}
			return err
		})
		if err == nil {
			break
		}
		// The ID is made of the address and the second: this one was given, and taken back, within this second.
		if !errors.Is(err, membership.ErrIDRemoved) {
			return 0, "", err
		}
	}
	return uint64(m.ID), memberList(name, peerURL, s.Members()), nil
}

// memberList is what etcd calls the initial cluster: every member's name and address, beginning with the new one's own.
func memberList(name, peerURL string, members []Member) string {
	parts := []string{name + "=" + peerURL}
	for _, other := range members {
		if other.PeerURL != peerURL {
			parts = append(parts, cmp.Or(other.Name, fmt.Sprintf("member-%x", other.ID))+"="+other.PeerURL)
		}
	}
	return strings.Join(parts, ",")
}

// Promote gives a learner its vote. It waits until the learner has caught up, or ctx ends.
func (s *Store) Promote(ctx context.Context, id uint64) error {
	s.reconfigure.Lock()
	defer s.reconfigure.Unlock()
	for {
		err := s.change(ctx, func(ctx context.Context) error {
			_, err := s.server.PromoteMember(ctx, id)
			return err
		})
		switch {
		case err == nil || errors.Is(err, membership.ErrMemberNotLearner):
			return nil
		case errors.Is(err, membership.ErrIDNotFound), errors.Is(err, membership.ErrIDRemoved):
			return fault.New(fault.NotFound, "member %x is not part of the cluster's state", id)
		case !errors.Is(err, etcderrors.ErrLearnerNotReady):
			return err
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "the new manager has not caught up with the cluster's state in time")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// RemoveMember takes a member out. That the rest keeps a quorum is for the caller to see to; removing one that is not
// there succeeds.
func (s *Store) RemoveMember(ctx context.Context, id uint64) error {
	s.reconfigure.Lock()
	defer s.reconfigure.Unlock()
	if err := s.Linearize(ctx); err != nil {
		return err
	}
	err := s.change(ctx, func(ctx context.Context) error {
		_, err := s.server.RemoveMember(ctx, id)
		return err
	})
	if errors.Is(err, membership.ErrIDNotFound) || errors.Is(err, membership.ErrIDRemoved) {
		return nil
	}
	return err
}

// MovePeerURL tells the others where this member is now.
func (s *Store) MovePeerURL(ctx context.Context, peerURL string) error {
	s.reconfigure.Lock()
	defer s.reconfigure.Unlock()
	return s.change(ctx, func(ctx context.Context) error {
		_, err := s.server.UpdateMember(ctx, membership.Member{
			ID: s.server.MemberID(), RaftAttributes: membership.RaftAttributes{PeerURLs: []string{peerURL}},
		})
		return err
	})
}

// change carries out one change of membership. Raft drops one that meets another under way, and then nobody answers: so
// each attempt is short, and all of them are harmless when repeated.
func (s *Store) change(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*WriteTimeout)
	defer cancel()
	for {
		attempt, cancelAttempt := context.WithTimeout(ctx, attemptTimeout)
		err := do(attempt)
		cancelAttempt()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, membership.ErrIDExists), errors.Is(err, membership.ErrIDNotFound), errors.Is(err, membership.ErrIDRemoved),
			errors.Is(err, membership.ErrMemberNotLearner), errors.Is(err, membership.ErrPeerURLexists),
			errors.Is(err, membership.ErrTooManyLearners), errors.Is(err, etcderrors.ErrLearnerNotReady):
			return err
		case errors.Is(err, etcderrors.ErrStopped):
			return errStopped()
		}
		s.logger.Debug("a change of the managers is tried again", "error", err)
		if err := s.waitForLeader(ctx); err != nil {
			return err
		}
	}
}

// RemovedHandler answers a member that does not know that it has been removed, in the way that makes it stop.
func RemovedHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Server-Version", version.Version) // without it the answer is taken for that of an old member
		http.Error(w, "the member has been permanently removed from the cluster", http.StatusGone)
	})
}
