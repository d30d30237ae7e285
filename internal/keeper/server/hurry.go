package server

import (
	"context"
	"sync"
)

// hurry tells those who wait for something that may never come that they are not to.
type hurry struct {
	mu   sync.Mutex
	ctx  context.Context
	tell context.CancelCauseFunc
}

// context ends when somebody is in a hurry.
func (h *hurry) context() context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx == nil {
		h.ctx, h.tell = context.WithCancelCause(context.Background())
	}
	return h.ctx
}

// up ends the waiting of all who do so now.
func (h *hurry) up(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx != nil {
		h.tell(cause)
		h.ctx = nil
	}
}
