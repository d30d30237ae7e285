package server

import (
	"sync"
	"time"
)

// gate keeps apart what many do at the same time and what is done while none of them does.
type gate struct {
	one sync.Mutex // one who shuts it at a time

	mu      sync.Mutex
	running int
	idle    chan struct{} // closed when nobody is inside any more; nil if nobody waits for that
	shut    chan struct{} // closed when it is open again; nil if it is
}

// begin waits while the gate is shut; done is to follow.
func (g *gate) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut != nil {
		over := g.shut
		g.mu.Unlock()
		<-over
		g.mu.Lock()
	}
	g.running++
}

func (g *gate) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running--; g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// tryAlone shuts the gate and calls f when nobody is inside any more. It reports false, without that call, if somebody still
// is after so long: it keeps nobody outside for longer because of one inside that does not get on.
func (g *gate) tryAlone(within time.Duration, f func()) bool {
	g.one.Lock()
	defer g.one.Unlock()
	idle, over := make(chan struct{}), make(chan struct{})
	g.mu.Lock()
	g.shut = over
	if g.running == 0 {
		close(idle)
	} else {
		g.idle = idle
	}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.idle, g.shut = nil, nil
		close(over)
	}()
	bound := time.NewTimer(within)
	defer bound.Stop()
	select {
	case <-idle:
		f()
		return true
	case <-bound.C:
		return false
	}
}
