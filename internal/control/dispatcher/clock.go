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
	period   time.Duration            // how often nodes are to be heard
	last     map[string]time.Duration // when each node was heard; nodes that are down are not in it
	told     map[string]time.Duration // the period that each node was told last
	sessions map[string]string        // session by node
}

func newClock(period time.Duration) *clock {
	return &clock{period: period, last: map[string]time.Duration{}, told: map[string]time.Duration{}, sessions: map[string]string{}}
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
	c.sessions[node], c.last[node], c.told[node] = session, c.now, c.period
}

// beat takes a heartbeat, and returns when the next one is to come; false: it is not of the node's session.
func (c *clock) beat(node, session string) (period time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[node] != session {
		return 0, false
	}
	c.last[node], c.told[node] = c.now, c.period
	return c.period, true
}

func (c *clock) forget(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(node)
}

func (c *clock) drop(node string) {
	delete(c.last, node)
	delete(c.told, node)
	delete(c.sessions, node)
}

// advance moves the clock by the time since the last tick, at most by half a tick more than one, and returns the nodes
// that have been silent for longer than downAfter, and than three periods: that of now, or the longer one that a node was
// told and still keeps. They are forgotten: each is returned once.
func (c *clock) advance(elapsed, period time.Duration) (silent []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += min(elapsed, tick*3/2)
	c.period = period
	for node, at := range c.last {
		if c.now-at > max(downAfter, 3*period, 3*c.told[node]) {
			silent = append(silent, node)
			c.drop(node)
		}
	}
	return silent
}
