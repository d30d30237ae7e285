package membership

import (
	"context"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

// keepMembers makes the members of the replicated state agree with the nodes, on the leading manager: a node that was
// removed, or demoted while it is away, cannot take its member out itself, and a dead member counts against the quorum.
func (mg *manager) keepMembers() {
	for leads := range mg.store.Leadership(mg.ctx) {
		for leads && mg.ctx.Err() == nil && mg.store.IsLeader() {
			leads = mg.keepMembersWhileLeading()
		}
	}
}

// keepMembersWhileLeading makes one round and waits for a reason to make the next; false: stop.
func (mg *manager) keepMembersWhileLeading() bool {
	ctx, cancel := context.WithCancel(mg.ctx)
	defer cancel()
	// The round begins after the watch: what changes during it is the reason for the next.
	changes := mg.store.Watch(ctx, nil, cloud.KindNode)
	for _, id := range mg.strays() {
		if err := mg.removeMember(ctx, id); err != nil {
			mg.logger.Debug("a member of the replicated state is no manager any more and cannot be taken out yet", "node", id, "error", err)
			continue
		}
		mg.logger.Info("a manager that was removed or demoted has been taken out of the replicated state", "node", id)
	}
	// A node that is away now may have been there a moment ago, and the other way about: look again without a reason, too.
	select {
	case _, ok := <-changes:
		return ok
	case <-time.After(5 * time.Second):
		return true
	}
}

// strays returns the nodes of members that should not be members and will not leave by themselves.
func (mg *manager) strays() (ids []string) {
	for _, member := range mg.store.Members() {
		if member.Name == "" || member.ID == mg.store.MemberID() {
			continue
		}
		var n *cloud.Node
		mg.store.View(func(tx state.Tx) { n = state.Get[*cloud.Node](tx, member.Name) })
		if n == nil {
			ids = append(ids, member.Name)
			continue
		}
		if n.Spec.Role == cloud.RoleManager {
			continue
		}
		if addr, err := cutScheme(member.PeerURL); err == nil && !mg.probe.reachable(addr) {
			ids = append(ids, member.Name)
		}
	}
	return ids
}
