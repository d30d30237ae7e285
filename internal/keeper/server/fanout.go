package server

import (
	"bytes"
	"fmt"
	"slices"
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
	sent        [3]int64 // how far each stream has come
	keepBacklog bool
	// first is closed when the first client has come; nil if none is expected, or no longer.
	first       chan struct{}
	backlog     []chunk
	backlogSize int
	ended       bool
	// unread: an exec taken over from another keeper, whose first client perhaps never came.
	unread bool
	// returning is how many who were attached to the keeper before are to come back; returned is closed when they have.
	returning int
	returned  chan struct{}
}

// newFanout makes one that keeps for the first client what is sent before it comes, if asked to; if such a client is
// expected, who sends more than is kept is held up until it comes, but no longer than for one that takes nothing.
func newFanout(keepBacklog, expectClient bool) *fanout {
	f := &fanout{clients: map[*subscriber]struct{}{}, keepBacklog: keepBacklog, stall: stallLimit}
	if expectClient {
		f.first = make(chan struct{})
	}
	return f
}

// begin says how far a stream has come before the first send.
func (f *fanout) begin(stream int, at int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent[stream] = at
}

// adopt says that there was a keeper before, which took so many bytes, and of whose clients so many come back. One that is expected
// for the first time counts as one of them if it still may come.
func (f *fanout) adopt(clients int, taken int64, mayCome bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unread, f.keepBacklog = f.keepBacklog, false
	if mayCome && f.first != nil && clients == 0 && taken <= keptForClients {
		clients = 1 // the one that is expected may not have come yet
	}
	f.first = nil
	if f.returning = clients; clients > 0 {
		f.returned = make(chan struct{})
	}
}

// awaitReturn waits for those who are to come back, as long as for one who takes nothing.
func (f *fanout) awaitReturn() {
	f.mu.Lock()
	returned := f.returned
	f.mu.Unlock()
	if returned == nil {
		return
	}
	bound := time.NewTimer(f.stall)
	defer bound.Stop()
	select {
	case <-returned:
	case <-bound.C:
		f.mu.Lock()
		f.returning = 0 // the next keeper need not wait for them again
		f.mu.Unlock()
	}
}

// attached is how many clients there are, those that are to come back included.
func (f *fanout) attached() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.clients) + f.returning
}

// mayAskAgain tells whether somebody may want to have what was sent a second time.
func (f *fanout) mayAskAgain() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.clients) > 0 || f.keepBacklog
}

// send gives data to everyone attached. A client whose queue is full is waited for; one that takes nothing for the
// stall limit is dropped.
func (f *fanout) send(stream int, data []byte) {
	f.mu.Lock()
	f.awaitFirst(len(data))
	f.sent[stream] += int64(len(data))
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
	// Those that take nothing do so at the same time: all of them together hold the process up hardly longer than one.
	began := time.Now()
	for _, s := range clients {
		if !s.put(c, max(f.stall-time.Since(began), f.stall/10)) {
			f.remove(s)
		}
	}
}

// awaitFirst waits for a client that is expected, if n bytes more cannot be kept for it. The caller holds f.mu, and holds
// it again when what it is about to send can be kept, or somebody is there to take it.
func (f *fanout) awaitFirst(n int) {
	if f.first == nil || f.backlogSize+n <= backlogLimit {
		return
	}
	first := f.first
	f.mu.Unlock()
	bound := time.NewTimer(f.stall)
	defer bound.Stop()
	select {
	case <-first:
		f.mu.Lock()
	case <-bound.C:
		f.mu.Lock()
		f.first = nil
	}
}

// add attaches a client and says at which place of each stream it begins: where the streams are now, or with the backlog
// for the first one. One that was attached to the keeper before names the places that it has come to: what it lacks is
// read again by replay.
func (f *fanout) add(stdout, stderr bool, places []int64, replay func(stream int, from, to int64) ([]byte, error)) (s *subscriber, from [3]int64, err error) {
	s = &subscriber{want: [3]bool{wire.FrameStdout: stdout, wire.FrameStderr: stderr}, changed: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	from = f.sent
	again := len(places) == len(from)
	if (again || f.unread) && f.returning > 0 {
		if f.returning--; f.returning == 0 {
			defer close(f.returned)
		}
	}
	if again || f.unread {
		for stream := range from {
			if !s.want[stream] {
				continue
			}
			var place int64
			if again {
				place = places[stream]
			}
			missed, err := replay(stream, place, f.sent[stream])
			if err != nil && again {
				return nil, from, err
			}
			if err == nil && len(missed) > 0 {
				// In pieces as they come from a pump: the queue's bound is on what is taken at a time.
				for piece := range slices.Chunk(missed, bufferSize) {
					s.queue = append(s.queue, chunk{wire.FrameKind(stream), piece})
				}
				s.size += len(missed)
				from[stream] = place
			}
		}
	}
	for _, c := range f.backlog {
		if s.put(c, 0) {
			from[c.stream] -= int64(len(c.data))
		}
	}
	f.unread, f.keepBacklog, f.backlog, f.backlogSize = false, false, nil, 0
	if f.first != nil {
		close(f.first)
		f.first = nil
	}
	if f.ended {
		s.end("")
	} else {
		f.clients[s] = struct{}{}
	}
	return s, from, nil
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
