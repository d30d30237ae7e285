package dispatcher

import (
	"sync"
	"time"
)

// clock measures the nodes' silence in time that this process could have heard them in: it advances by ticks, and a tick
// that comes late, because the machine was too busy to run us, counts little more than one on time.
type clock struct {
	mu       sync.Mutex
	now      time.Duration
	last     map[string]time.Duration // when each node was heard; nodes that are down are not in it
	sessions map[string]string        // session by node
}

func newClock() *clock {
	return &clock{last: map[string]time.Duration{}, sessions: map[string]string{}}
}

// grant starts the time of a node as if it had been silent for some of it.
func (c *clock) grant(node string, silent time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[node] = c.now - silent
}

// meet starts the time of a node that is not known yet.
func (c *clock) meet(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.last[node]; !ok {
		c.last[node] = c.now
	}
}

// open begins a session; what was heard from the node's earlier one counts no more.
func (c *clock) open(node, session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[node], c.last[node] = session, c.now
}

// beat takes a heartbeat; false: it is not of the node's session.
func (c *clock) beat(node, session string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[node] != session {
		return false
	}
	c.last[node] = c.now
	return true
}

func (c *clock) forget(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.last, node)
	delete(c.sessions, node)
}

// advance moves the clock by the time since the last tick, at most by half a tick more than one, and returns the nodes
// that have been silent for longer than limit. They are forgotten: each is returned once.
func (c *clock) advance(elapsed, limit time.Duration) (silent []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += min(elapsed, tick*3/2)
	for node, at := range c.last {
		if c.now-at > limit {
			silent = append(silent, node)
			delete(c.last, node)
			delete(c.sessions, node)
		}
	}
	return silent
}
