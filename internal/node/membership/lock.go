package membership

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
)

// Errors in Docker's words.
var (
	// ErrLocked says that the host is a manager of a cluster and waits to be unlocked.
	ErrLocked    = fault.New(fault.Unavailable, `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`)
	errNotLocked = fault.New(fault.Conflict, "swarm is not locked")
	errWrongKey  = fault.New(fault.Unauthorized, "swarm could not be unlocked: invalid key provided")
)

// Unlock takes up the membership of a manager whose keys are locked on disk.
func (m *Membership) Unlock(ctx context.Context, key string) error {
	m.ops.Lock()
	defer m.ops.Unlock()
	if !m.isLocked() {
		if m.running() == nil {
			return errNoSwarm
		}
		return errNotLocked
	}
	rec, err := readRecord(m.dir)
	if err != nil || rec == nil {
		return errors.Join(errNoSwarm, err)
	}
	id, err := identity.Load(filepath.Join(m.dir, certsDir), key, m.now)
	if errors.Is(err, identity.ErrLocked) || fault.Is(err, fault.InvalidArgument) {
		return errWrongKey
	}
	if err != nil {
		return err
	}
	m.setLocked(false)
	m.logger.Info("this manager is unlocked")
	return m.take(ctx, rec, id)
}

func (m *Membership) isLocked() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.locked
}

func (m *Membership) setLocked(locked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.locked = locked
}

// keepLocked locks this manager's keys under the key that the cluster has now, whenever it changes.
func (mg *manager) keepLocked() {
	changes := mg.store.Watch(mg.ctx, nil, cloud.KindCluster)
	for {
		if c := mg.cluster(); c != nil {
			if err := mg.id.SetUnlockKey(c.UnlockKey); err != nil {
				mg.logger.Error("this manager's keys could not be locked under the cluster's new unlock key", "error", err)
			}
		}
		if _, ok := <-changes; !ok {
			return
		}
	}
}
