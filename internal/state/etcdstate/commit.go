package etcdstate

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/state/mirror"
)

const (
	// attemptTimeout bounds one proposal: one that a leader took with it into its grave is never answered.
	attemptTimeout = 2 * time.Second
	// A lease is shared by the idempotency keys of an hour.
	leaseShared = time.Hour
)

// Commit is mirror.Backend's. It tries again while the cluster elects a leader, for at most WriteTimeout. An attempt
// without an answer may have been carried out: then the next one finds its own writes in place of what it compares.
func (s *Store) Commit(ctx context.Context, txn mirror.Txn) (ok bool, rev uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
	defer cancel()
	txn = s.seal.close(txn) // once: an attempt is known again by what it wrote
	unanswered := false
	for {
		ok, rev, err = s.try(ctx, txn, unanswered)
		switch {
		case err == nil:
			return ok, rev, nil
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.dropLease()
		case retriable(err):
			unanswered = true
		default:
			return false, 0, kindOf(err)
		}
		if err := s.waitForLeader(ctx); err != nil {
			return false, 0, err
		}
	}
}

func (s *Store) try(ctx context.Context, txn mirror.Txn, unanswered bool) (ok bool, rev uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	var compares []clientv3.Cmp
	for _, key := range slices.Sorted(maps.Keys(txn.Compares)) {
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", int64(txn.Compares[key])))
	}
	var ops, reads []clientv3.Op
	puts := slices.Sorted(maps.Keys(txn.Puts))
	for _, key := range puts {
		var opts []clientv3.OpOption
		if _, ok := txn.Expiring[key]; ok {
			lease, err := s.idempotencyLease(ctx)
			if err != nil {
				return false, 0, err
			}
			opts = append(opts, clientv3.WithLease(lease))
		}
		ops = append(ops, clientv3.OpPut(key, string(txn.Puts[key]), opts...))
		reads = append(reads, clientv3.OpGet(key))
	}
	for _, key := range slices.Sorted(maps.Keys(txn.Deletes)) {
		ops = append(ops, clientv3.OpDelete(key))
		reads = append(reads, clientv3.OpGet(key))
	}
	if !unanswered {
		reads = nil
	}
	resp, err := s.client.Txn(ctx).If(compares...).Then(ops...).Else(reads...).Commit()
	if err != nil {
		return false, 0, err
	}
	rev = uint64(resp.Header.Revision)
	if resp.Succeeded || !unanswered {
		return resp.Succeeded, rev, nil
	}
	// Is what stands there what the unanswered attempt wrote? Documents carry the time of their writing.
	for i, r := range resp.Responses {
		kvs := r.GetResponseRange().GetKvs()
		if i >= len(puts) {
			if len(kvs) > 0 {
				return false, rev, nil
			}
			continue
		}
		if len(kvs) != 1 || !bytes.Equal(kvs[0].Value, txn.Puts[puts[i]]) {
			return false, rev, nil
		}
		rev = uint64(kvs[0].ModRevision)
	}
	return true, rev, nil
}

// waitForLeader returns when another attempt makes sense, an error when time is up.
func (s *Store) waitForLeader(ctx context.Context) error {
	pause := 20 * time.Millisecond
	for {
		changed := s.server.LeaderChangedNotify()
		select {
		case <-ctx.Done():
			if s.server.Leader() == 0 {
				return errNoQuorum()
			}
			return fault.New(fault.Unavailable, "the cluster's managers did not answer in time: the change may or may not have been made")
		case <-s.server.StopNotify():
			return errStopped()
		case <-changed:
		case <-time.After(pause):
		}
		if s.server.Leader() != 0 {
			return nil
		}
		pause = 100 * time.Millisecond
	}
}

func errNoQuorum() error {
	return fault.New(fault.Unavailable, "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.")
}

// retriable tells errors that say nothing of the request.
func retriable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code() == codes.Unavailable || e.Code() == codes.DeadlineExceeded || errors.Is(err, rpctypes.ErrTooManyRequests)
	}
	return false
}

func kindOf(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.New(fault.Exhausted, "the cluster's state is full (%d MiB): remove services, secrets or configs that are not used", quotaBytes>>20)
	case errors.Is(err, context.Canceled):
		return fault.New(fault.Unavailable, "the request was given up while the managers were asked: %w", err)
	case errors.Is(err, rpctypes.ErrStopped):
		return errStopped()
	}
	return fault.New(fault.Internal, "write the cluster's state: %w", err)
}

func (s *Store) idempotencyLease(ctx context.Context) (clientv3.LeaseID, error) {
	s.lease.mu.Lock()
	defer s.lease.mu.Unlock()
	if s.lease.id != 0 && time.Now().Before(s.lease.until) {
		return s.lease.id, nil
	}
	ttl := mirror.IdempotencyTTL + leaseShared
	granted, err := s.client.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, err
	}
	s.lease.id, s.lease.until = granted.ID, time.Now().Add(leaseShared)
	return s.lease.id, nil
}

func (s *Store) dropLease() {
	s.lease.mu.Lock()
	defer s.lease.mu.Unlock()
	s.lease.id = 0
}

// Linearize is state.Store's.
func (s *Store) Linearize(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := s.server.LinearizableReadNotify(attempt)
		cancel()
		if err == nil {
			return s.mirror.Wait(ctx, uint64(s.server.KV().Rev()))
		}
		if err := s.waitForLeader(ctx); err != nil {
			return err
		}
	}
}
