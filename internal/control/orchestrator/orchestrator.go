package orchestrator

import (
	"context"
	"log/slog"

	"github.com/sampan-cloud/sampan/internal/state"
)

// Orchestrator is the loop.
type Orchestrator struct {
	store  state.Store
	logger *slog.Logger
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Orchestrator { return &Orchestrator{store: store, logger: logger} }

// Run works until ctx ends.
func (l *Orchestrator) Run(ctx context.Context) error { <-ctx.Done(); return nil }
