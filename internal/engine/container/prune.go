package container

import (
	"context"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Prune removes the containers that do not run and that filter (nil: all) accepts. It returns their IDs and the bytes
// of their writable layers.
func (m *Manager) Prune(ctx context.Context, filter func(Container) bool) (ids []string, freed int64, err error) {
	for _, s := range m.List() {
		if ctx.Err() != nil {
			return ids, freed, ctx.Err()
		}
		if s.State.Running || s.State.Status == StatusRemoving || filter != nil && !filter(s) {
			continue
		}
		rw, _, err := m.Images.RootfsUsage(ctx, s.ID)
		if err != nil {
			rw = 0
		}
		if err := m.Remove(ctx, s.ID, false, false, false); err != nil {
			if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
				m.log.Warn("container not pruned", "container", s.ID, "error", err)
			}
			continue
		}
		ids = append(ids, s.ID)
		freed += rw
	}
	return ids, freed, nil
}
