package membership

import (
	"context"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
)

// setTrust hears which roots the managers want this node to trust, by their fingerprint, with every answer.
func (m *Membership) setTrust(cur *membership, fingerprint string) {
	if fingerprint == "" {
		return
	}
	m.mu.Lock()
	news := cur.wantTrust != fingerprint
	cur.wantTrust = fingerprint
	m.mu.Unlock()
	if news {
		poke(cur.trustNews)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// followTrust renews this node's certificate when the cluster's authority changes, and sees that all of a manager goes
// by the roots that it has now, however it got them.
func (m *Membership) followTrust(cur *membership) {
	retry := time.Duration(0)
	for {
		changed := cur.id.Changed()
		err := m.applyTrust(cur)
		if cur.ctx.Err() != nil {
			return
		}
		var again <-chan time.Time
		if err != nil {
			retry = min(max(2*retry, 200*time.Millisecond), 10*time.Second)
			again = time.After(retry)
			m.logger.Warn("this node could not follow a change of the cluster's certificate authority; trying again", "error", err, "next try in", retry)
		} else {
			retry = 0
			poke(cur.trustChanged)
		}
		select {
		case <-cur.ctx.Done():
			return
		case <-cur.trustNews:
		case <-changed:
		case <-again:
		}
	}
}

func (m *Membership) applyTrust(cur *membership) error {
	m.ops.Lock()
	defer m.ops.Unlock()
	if cur.ctx.Err() != nil {
		return cur.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(cur.ctx, time.Minute)
	defer cancel()
	m.mu.Lock()
	wanted, mg := cur.wantTrust, cur.manager
	m.mu.Unlock()
	if wanted != "" && wanted != identity.Fingerprint(cur.id.CA().CertPEM()) {
		if mg != nil { // it signs its own, by what its copy of the state says
			if err := mg.store.Linearize(ctx); err != nil {
				return err
			}
		}
		if err := m.renew(ctx, cur); err != nil {
			return err
		}
		m.logger.Info("this node follows a change of the cluster's certificate authority", "issuer", cur.id.CA().Digest())
	}
	if mg == nil || mg.roots.SameRoots(cur.id.CA()) {
		return nil
	}
	// The member of the replicated state reads the roots when it starts.
	m.logger.Info("this node's part as a manager starts anew, with the certificate authority's new roots")
	return m.restartManager(ctx, cur)
}

// restartManager stops this node's part as a manager and starts it again. Called with ops held.
func (m *Membership) restartManager(ctx context.Context, cur *membership) error {
	done := make(chan struct{})
	m.mu.Lock()
	m.restarting = done
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.restarting = nil
		m.mu.Unlock()
		close(done)
	}()
	m.stopManager(cur)
	if err := m.resumeManager(ctx, cur); err != nil {
		cur.want(cloud.RoleManager)
		return fault.New(fault.Unavailable, "start this node's part as a manager again: %w", err)
	}
	return nil
}

// Restarting returns a channel that is closed when this node's part as a manager, which is being started anew, is back
// or will not come back; nil: it is not being started.
func (m *Membership) Restarting() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.restarting
}

// trustRoot returns the roots that all of this node goes by, in PEM.
func (m *Membership) trustRoot(cur *membership) string {
	m.mu.Lock()
	mg := cur.manager
	m.mu.Unlock()
	if ca := cur.id.CA(); mg == nil || mg.roots.SameRoots(ca) {
		return string(ca.CertPEM())
	}
	return string(mg.roots.CertPEM())
}
