package scheduler

import (
	"context"
	"log/slog"

	"github.com/sampan-cloud/sampan/internal/state"
)

// Scheduler is the loop.
type Scheduler struct {
	store  state.Store
	logger *slog.Logger
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Scheduler { return &Scheduler{store: store, logger: logger} }

// Run works until ctx ends.
func (l *Scheduler) Run(ctx context.Context) error { <-ctx.Done(); return nil }
