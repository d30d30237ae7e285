package authority

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/memstate"
)

func newCA(t *testing.T) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// TestRotation: each step waits for every node, and the tokens change with who issues certificates.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memstate.New()
		defer store.Close()
		update := func(change func(tx state.WriteTx, c *cloud.Cluster) error) {
			t.Helper()
			if err := store.Update(t.Context(), func(tx state.WriteTx) error {
				return change(tx, state.Clone(state.Get[*cloud.Cluster](tx, "c")))
			}); err != nil {
				t.Fatal(err)
			}
		}
		cluster := func() (c *cloud.Cluster) {
			synctest.Wait()
			<-time.After(time.Second)
			store.View(func(tx state.Tx) { c = state.Get[*cloud.Cluster](tx, "c") })
			return c
		}
		// reports is what the session of a node does when it goes by what the cluster says now.
		reports := func(id string) {
			t.Helper()
			update(func(tx state.WriteTx, c *cloud.Cluster) error {
				n := state.Clone(state.Get[*cloud.Node](tx, id))
				n.Description.TrustRoot = string(c.CA.Bundle())
				return tx.Put(n)
			})
		}
		old, next, other := newCA(t), newCA(t), newCA(t)
		if err := store.Update(t.Context(), func(tx state.WriteTx) error {
			for _, o := range []cloud.Object{&cloud.Node{Meta: cloud.Meta{ID: "a"}}, &cloud.Node{Meta: cloud.Meta{ID: "b"}}, &cloud.Cluster{
				Meta: cloud.Meta{ID: "c"}, CA: cloud.CA{Cert: old.CertPEM(), Key: old.KeyPEM(), Digest: old.Digest()}, Tokens: cloud.JoinTokens{Worker: "w", Manager: "m"}}} {
				if err := tx.Put(o); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New(store, slog.New(slog.DiscardHandler)).Run(ctx) }()

		for _, ca := range []*identity.CA{other, next} { // the second takes the first one's place
			update(func(tx state.WriteTx, c *cloud.Cluster) error {
				if err := Begin(c, ca); err != nil {
					return err
				}
				return tx.Put(c)
			})
		}
		reports("a")
		if c := cluster(); c.CA.Next.Issuing || c.CA.IssuingDigest() != old.Digest() || c.Tokens.Worker != "w" {
			t.Fatal("it issues certificates that a node does not trust")
		}
		reports("b")
		c := cluster()
		if !c.CA.Next.Issuing || c.CA.IssuingDigest() != next.Digest() || c.Tokens.Worker == "w" || c.Tokens.Manager == "m" {
			t.Fatalf("every node trusts it, and it does not issue certificates: %+v", c.Tokens)
		}
		if token, err := identity.ParseToken(c.Tokens.Worker); err != nil || token.Digest != next.Digest() {
			t.Errorf("the token vouches for %s, %v", token.Digest, err)
		}
		if err := Begin(c, other); !fault.Is(err, fault.FailedPrecondition) {
			t.Errorf("another one in the middle of it: %v", err)
		}
		reports("b")
		if c := cluster(); c.CA.Next == nil {
			t.Fatal("done without node a")
		}
		// Removed, it holds up nothing.
		update(func(tx state.WriteTx, _ *cloud.Cluster) error { return tx.Delete(cloud.KindNode, "a") })
		if c := cluster(); c.CA.Next != nil || c.CA.Digest != next.Digest() || string(c.CA.Bundle()) != string(next.CertPEM()) {
			t.Error("not done without the node that was removed")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
