package server

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/keeper/wire"
)

const (
	// backlogLimit bounds what is kept for an exec's first attach, and what is queued for one attached client.
	backlogLimit = 1 << 20
	// stallLimit is how long a process is held up by an attached client that takes nothing.
	stallLimit = 10 * time.Second
)

type chunk struct {
	stream wire.FrameKind
	data   []byte // shared by all clients: never written to
}

// fanout gives what a process prints to all that are attached.
type fanout struct {
	stall time.Duration

	mu          sync.Mutex
	clients     map[*subscriber]struct{}
	keepBacklog bool
	backlog     []chunk
	backlogSize int
	ended       bool
}

func newFanout(keepBacklog bool) *fanout {
	return &fanout{clients: map[*subscriber]struct{}{}, keepBacklog: keepBacklog, stall: stallLimit}
}

// send gives data to everyone attached. A client whose queue is full is waited for; one that takes nothing for the
// stall limit is dropped.
func (f *fanout) send(stream int, data []byte) {
	f.mu.Lock()
	if len(f.clients) == 0 && !f.keepBacklog {
		f.mu.Unlock()
		return
	}
	c := chunk{wire.FrameKind(stream), bytes.Clone(data)}
	if f.keepBacklog && f.backlogSize+len(data) <= backlogLimit {
		f.backlog = append(f.backlog, c)
		f.backlogSize += len(data)
	}
	clients := make([]*subscriber, 0, len(f.clients))
	for s := range f.clients {
		clients = append(clients, s)
	}
	f.mu.Unlock()
	for _, s := range clients {
		if !s.put(c, f.stall) {
			f.remove(s)
		}
	}
}

// add attaches a client. The first one gets the backlog.
func (f *fanout) add(stdout, stderr bool) *subscriber {
	s := &subscriber{want: [3]bool{wire.FrameStdout: stdout, wire.FrameStderr: stderr}, changed: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.backlog {
		s.put(c, 0)
	}
	f.keepBacklog, f.backlog, f.backlogSize = false, nil, 0
	if f.ended {
		s.end("")
	} else {
		f.clients[s] = struct{}{}
	}
	return s
}

func (f *fanout) remove(s *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.clients, s)
}

// end tells everyone that nothing more comes.
func (f *fanout) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for s := range f.clients {
		s.end("")
	}
	clear(f.clients)
}

// forget drops the backlog that nobody came for.
func (f *fanout) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keepBacklog, f.backlog, f.backlogSize = false, nil, 0
}

// subscriber is the queue of one attached client.
type subscriber struct {
	want [3]bool

	mu      sync.Mutex
	queue   []chunk
	size    int
	over    bool
	reason  string // why it was dropped
	changed chan struct{}
}

// put queues c, waiting while the queue is full and moves; false tells that the client was dropped or has gone.
func (s *subscriber) put(c chunk, stall time.Duration) bool {
	if !s.want[c.stream] {
		return true
	}
	s.mu.Lock()
	for !s.over && s.size > 0 && s.size+len(c.data) > backlogLimit {
		changed := s.changed
		s.mu.Unlock()
		timer := time.NewTimer(stall)
		select {
		case <-changed:
			timer.Stop()
		case <-timer.C:
			s.end(fmt.Sprintf("dropped: nothing of the output was taken for %v", stall))
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.queue = append(s.queue, c)
	s.size += len(c.data)
	s.signal()
	return true
}

// next waits for queued chunks and takes some, not all, so that a slow client is seen to move; over tells that none come after these, and reason why if it is not the end.
func (s *subscriber) next() (list []chunk, over bool, reason string) {
	for {
		s.mu.Lock()
		taken := 0
		for taken < 64<<10 && len(s.queue) > len(list) {
			taken += len(s.queue[len(list)].data)
			list = s.queue[:len(list)+1]
		}
		s.queue, s.size = s.queue[len(list):], s.size-taken
		over, reason = s.over && len(s.queue) == 0, s.reason
		changed := s.changed
		if len(list) > 0 {
			s.signal()
		}
		s.mu.Unlock()
		if len(list) > 0 || over {
			return list, over, reason
		}
		<-changed
	}
}

// end lets the queue run out; with a reason it is thrown away.
func (s *subscriber) end(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over, s.reason = true, reason
	if reason != "" {
		s.queue, s.size = nil, 0
	}
	s.signal()
}

func (s *subscriber) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}
