package membership

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/rpc"
	"github.com/sampan-cloud/sampan/internal/state/etcdstate"
)

// want asks for a role; the newest wish counts.
func (cur *membership) want(r cloud.Role) {
	for {
		select {
		case cur.roles <- r:
			return
		default:
		}
		select {
		case <-cur.roles:
		default:
		}
	}
}

// setRole hears what role the managers name, with every answer: only a difference is work.
func (m *Membership) setRole(cur *membership, r cloud.Role) {
	if r != cloud.RoleWorker && r != cloud.RoleManager {
		return
	}
	m.mu.Lock()
	is := cloud.RoleWorker
	if cur.manager != nil {
		is = cloud.RoleManager
	}
	m.mu.Unlock()
	if r != is || string(r) != cur.id.Subject().Role {
		cur.want(r)
	}
}

// followRole carries out changes of role until they succeed or another is wanted.
func (m *Membership) followRole(cur *membership) {
	var wanted cloud.Role
	retry := time.Duration(0)
	var timer <-chan time.Time
	for {
		select {
		case <-cur.ctx.Done():
			return
		case wanted = <-cur.roles:
			retry = 0
		case <-timer:
		}
		timer = nil
		err := m.applyRole(cur, wanted)
		if cur.ctx.Err() != nil {
			return
		}
		if err == nil {
			m.mu.Lock()
			if m.current == cur && m.failure != errRemoved {
				m.failure = ""
			}
			m.mu.Unlock()
			continue
		}
		retry = min(max(2*retry, 500*time.Millisecond), 15*time.Second)
		m.logger.Warn("this node could not change its role; trying again", "role", wanted, "error", err, "next try in", retry)
		timer = time.After(retry)
	}
}

func (m *Membership) applyRole(cur *membership, role cloud.Role) error {
	m.ops.Lock()
	defer m.ops.Unlock()
	if cur.ctx.Err() != nil {
		return cur.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(cur.ctx, time.Minute)
	defer cancel()
	if role == cloud.RoleManager {
		return m.becomeManager(ctx, cur)
	}
	return m.becomeWorker(ctx, cur)
}

// becomeManager makes this node a manager with a vote, from wherever an earlier attempt ended.
func (m *Membership) becomeManager(ctx context.Context, cur *membership) error {
	if cur.id.Subject().Role != identity.Manager {
		if err := m.renew(ctx, cur); err != nil {
			return err
		}
		if cur.id.Subject().Role != identity.Manager {
			return nil // no longer wanted
		}
	}
	if err := failpoint.Hit("membership.promote.certified"); err != nil {
		return err
	}
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	if mg != nil {
		return m.askForVote(ctx, cur)
	}
	if etcdstate.Initialized(filepath.Join(m.dir, etcdDir)) && !cur.rejoin {
		if err := m.resumeManager(ctx, cur); err != nil {
			return err
		}
		return m.askForVote(ctx, cur)
	}
	var added *rpc.AddManagerResponse
	if err := cur.pool.Do(ctx, func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		added, err = rpc.NewMembershipClient(c).AddManager(ctx, &rpc.AddManagerRequest{
			RpcAddr: cur.rec.Advertise.String(), PeerUrl: cur.rec.peerURL(),
		})
		return err
	}); err != nil {
		return err
	}
	if err := failpoint.Hit("membership.promote.added"); err != nil {
		return err
	}
	if err := m.removeEtcd(); err != nil { // of a member that was
		return err
	}
	if err := cur.id.SetDataKey(added.GetDataKey()); err != nil {
		return err
	}
	cur.rejoin = false
	mg, err := m.startManager(ctx, cur.rec, cur.id, cur.pool, managerStart{
		initialCluster: added.GetInitialCluster(),
		prepare: func(ctx context.Context, mg *manager) error {
			if err := failpoint.Hit("membership.promote.started"); err != nil {
				return err
			}
			if err := m.askForVote(ctx, cur); err != nil {
				return err
			}
			return mg.store.Linearize(ctx)
		},
	})
	if err != nil {
		// The next attempt begins with an empty folder: AddManager replaces the member it finds.
		return errors.Join(err, m.removeEtcd())
	}
	m.mu.Lock()
	cur.manager = mg
	m.mu.Unlock()
	cur.pool.Update(mg.managerAddrs())
	m.logger.Info("this node is a manager now")
	return nil
}

// askForVote has this node's learner promoted, and its address written down.
func (m *Membership) askForVote(ctx context.Context, cur *membership) error {
	return cur.pool.Do(ctx, func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := rpc.NewMembershipClient(c).PromoteManager(ctx, &rpc.PromoteManagerRequest{})
		return err
	})
}

// becomeWorker takes this node out of the replicated state and makes it a worker.
func (m *Membership) becomeWorker(ctx context.Context, cur *membership) error {
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	if mg != nil {
		others, err := m.others(cur, mg)
		if err != nil {
			return err
		}
		defer others.Close()
		if err := mg.store.StepDown(); err != nil {
			m.logger.Debug("leadership was not handed over before the demotion", "error", err)
		}
		if err := others.Do(ctx, func(ctx context.Context, c grpc.ClientConnInterface) error {
			_, err := rpc.NewMembershipClient(c).RemoveManager(ctx, &rpc.RemoveManagerRequest{})
			return err
		}); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		cur.pool.Update(others.Addrs())
		if err := failpoint.Hit("membership.demote.removed"); err != nil {
			return err
		}
		m.stopManager(cur)
	}
	if err := m.removeEtcd(); err != nil {
		return err
	}
	if err := errors.Join(cur.id.SetUnlockKey(""), cur.id.SetDataKey(nil)); err != nil { // they are managers' keys
		return err
	}
	cur.rejoin = false
	if cur.id.Subject().Role == identity.Worker {
		return nil
	}
	if err := m.renew(ctx, cur); err != nil {
		return err
	}
	if cur.id.Subject().Role != identity.Worker {
		return fault.New(fault.Unavailable, "the managers still certify this node as a manager")
	}
	m.logger.Info("this node is a worker now")
	return nil
}

// stopManager ends this node's part as a manager. Called with ops held.
func (m *Membership) stopManager(cur *membership) {
	m.mu.Lock()
	mg := cur.manager
	cur.manager = nil
	m.mu.Unlock()
	if mg != nil {
		mg.stop()
	}
}

// memberStopped hears that this node's member ended by itself: it was removed from the replicated state, because the node
// was demoted or removed, perhaps while it was away. The other managers know which.
func (m *Membership) memberStopped(mg *manager) {
	m.ops.Lock()
	defer m.ops.Unlock()
	m.mu.Lock()
	cur := m.current
	mine := cur != nil && cur.manager == mg
	m.mu.Unlock()
	if !mine {
		return
	}
	others := mg.managerAddrs()[1:]
	m.stopManager(cur)
	if len(others) == 0 {
		m.fail(fault.New(fault.Internal, "this manager's state has stopped, and there is no other manager: see the daemon's log"))
		cur.want(cloud.RoleManager)
		return
	}
	cur.rejoin = true
	cur.pool.Update(others)
	err := m.renew(cur.ctx, cur)
	if fault.Is(err, fault.NotFound) {
		return // the renewal has seen to it
	}
	if err != nil {
		m.logger.Warn("this node's part as a manager has ended, and the other managers could not be asked why", "error", err)
		cur.want(cloud.RoleManager)
		return
	}
	cur.want(cloud.Role(cur.id.Subject().Role))
}
