// Package authority replaces the cluster's certificate authority, on the leading manager. It is the last step of a chain
// that begins with a user's request (Begin) and goes on by itself: the dispatcher tells every node which roots to trust,
// each renews its certificate and says what it trusts now, and when all have, the loop takes the next step. A node that
// is away holds the change up until it is back or removed: taken further, it could not come back.
package authority

import (
	"context"
	"log/slog"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control/loop"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/state"
)

// Begin makes ca the cluster's next authority. Until that one issues certificates, another may still take its place.
func Begin(c *cloud.Cluster, ca *identity.CA) error {
	if c.CA.Next != nil && c.CA.Next.Issuing {
		return fault.New(fault.FailedPrecondition, "the certificate authority is being replaced already, and nodes have certificates of the next one: wait until all have "+
			"(bring back, or remove, the nodes that are down)")
	}
	if ca.Digest() == c.CA.Digest {
		c.CA.Next = nil
		return nil
	}
	c.CA.Next = &cloud.NextCA{Cert: ca.CertPEM(), Key: ca.KeyPEM(), Digest: ca.Digest()}
	return nil
}

// Rotation is the loop.
type Rotation struct {
	store  state.Store
	logger *slog.Logger
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Rotation {
	return &Rotation{store: store, logger: logger}
}

// Run works until ctx ends.
func (r *Rotation) Run(ctx context.Context) error {
	l := loop.Loop{Store: r.store, Kinds: []cloud.Kind{cloud.KindCluster, cloud.KindNode}, Settle: time.Millisecond, Pass: r.pass}
	return l.Run(ctx)
}

func (r *Rotation) pass(ctx context.Context) (again time.Time) {
	var due bool
	r.store.View(func(tx state.Tx) { due = ready(tx) != nil })
	if !due {
		return time.Time{}
	}
	step := ""
	err := r.store.Update(ctx, func(tx state.WriteTx) error {
		c := ready(tx)
		if c == nil {
			return nil
		}
		c = state.Clone(c)
		var err error
		step, err = advance(c)
		if err != nil {
			return err
		}
		return tx.Put(c)
	})
	if err != nil {
		if ctx.Err() != nil {
			return time.Time{}
		}
		r.logger.Warn("replace the cluster's certificate authority: will try again", "error", err)
		return time.Now().Add(loop.Retry)
	}
	r.logger.Info("the cluster's certificate authority is being replaced", "step", step)
	return time.Time{}
}

// ready returns the cluster if a step can be taken: there is a next authority, and every node goes by the present bundle.
func ready(tx state.Tx) *cloud.Cluster {
	clusters := state.List[*cloud.Cluster](tx, state.By{})
	if len(clusters) == 0 || clusters[0].CA.Next == nil {
		return nil
	}
	bundle := string(clusters[0].CA.Bundle())
	for _, n := range state.List[*cloud.Node](tx, state.By{}) {
		if n.Description.TrustRoot != bundle {
			return nil
		}
	}
	return clusters[0]
}

// advance takes the next step and says which it was.
func advance(c *cloud.Cluster) (step string, err error) {
	next := c.CA.Next
	if next.Issuing {
		c.CA = cloud.CA{Cert: next.Cert, Key: next.Key, Digest: next.Digest}
		return "every node has a certificate of the new authority, which alone is trusted from now on", nil
	}
	// Who joins from here on meets managers with certificates of the new authority: tokens vouch for that one.
	next.Issuing = true
	for _, token := range []*string{&c.Tokens.Worker, &c.Tokens.Manager} {
		if *token, err = identity.NewToken(next.Digest); err != nil {
			return "", err
		}
	}
	return "every node trusts the new authority, which issues certificates from now on; join tokens have changed", nil
}
