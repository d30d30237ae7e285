package image

import (
	"sync"
	"time"
)

// progressEvery limits how often one line of progress is repeated.
const progressEvery = 100 * time.Millisecond

// meter reports how many bytes of something were done. It is an io.Writer that counts.
type meter struct {
	mu   sync.Mutex
	emit func(Progress)
	line Progress
	last time.Time
}

func newMeter(emit func(Progress), line Progress) *meter {
	return &meter{emit: emit, line: line}
}

// Write counts p.
func (m *meter) Write(p []byte) (int, error) {
	if m.emit == nil {
		return len(p), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(m.line.Current + int64(len(p)))
	return len(p), nil
}

// set says that n bytes are done.
func (m *meter) set(n int64) {
	if m.emit == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(n)
}

func (m *meter) report(n int64) {
	began := m.line.Current == 0 && n > 0 // worth a line at once: who waits sees that something comes
	m.line.Current = n
	if now := time.Now(); began || now.Sub(m.last) >= progressEvery {
		m.last = now
		m.emit(m.line)
	}
}

// done reports the end, whatever was reported before.
func (m *meter) done() {
	if m.emit == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.line.Current = m.line.Total
	m.emit(m.line)
}

// serial returns progress made safe for concurrent use; nil becomes a function that does nothing.
func serial(progress func(Progress)) func(Progress) {
	if progress == nil {
		return func(Progress) {}
	}
	var mu sync.Mutex
	return func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		progress(p)
	}
}
