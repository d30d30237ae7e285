package allocator

import (
	"context"
	"log/slog"

	"github.com/sampan-cloud/sampan/internal/state"
)

// Allocator is the loop.
type Allocator struct {
	store  state.Store
	logger *slog.Logger
}

// New returns the loop over a store.
func New(store state.Store, logger *slog.Logger) *Allocator { return &Allocator{store: store, logger: logger} }

// Run works until ctx ends.
func (l *Allocator) Run(ctx context.Context) error { <-ctx.Done(); return nil }
