package docker

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// progressStream answers with JSON messages, one a line, while something long goes on. Nothing is sent before the first
// message, so that an early error still has a status of its own.
type progressStream struct {
	mu   sync.Mutex
	w    *response
	out  *flushWriter
	mute bool // drop progress, send results only
}

func newProgressStream(w *response) *progressStream { return &progressStream{w: w, out: w.flushed()} }

// message is a line of the stream. Error repeats errorDetail's message for clients that look there.
type message struct {
	jsonstream.Message
	Error string `json:"error,omitempty"`
}

func (p *progressStream) send(m message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w.status == 0 {
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
	}
	body, err := marshal(m)
	if err != nil {
		return
	}
	_, _ = p.out.Write(body)
}

// progress sends one step of a pull, push or load. It may be called from several goroutines.
func (p *progressStream) progress(s image.Progress) {
	if p.mute {
		return
	}
	m := jsonstream.Message{ID: s.ID, Status: s.Status}
	if s.Current != 0 || s.Total != 0 {
		m.Progress = &jsonstream.Progress{Current: s.Current, Total: s.Total}
	} else if s.ID != "" {
		m.Progress = &jsonstream.Progress{}
	}
	if s.Aux != nil {
		if raw, err := json.Marshal(s.Aux); err == nil {
			m.Aux = (*json.RawMessage)(&raw)
		}
	}
	p.send(message{Message: m})
}

func (p *progressStream) status(s string) {
	p.send(message{Message: jsonstream.Message{Status: s}})
}

func (p *progressStream) stream(s string) {
	p.send(message{Message: jsonstream.Message{Stream: strings.TrimSuffix(s, "\n") + "\n"}})
}

// done ends the stream: an error goes into it if it has begun, and else becomes the answer.
func (p *progressStream) done(err error) error {
	p.mu.Lock()
	begun := p.w.status != 0
	p.mu.Unlock()
	switch {
	case err != nil && !begun:
		return err
	case err != nil:
		p.send(message{Message: jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, Error: err.Error()})
	case !begun:
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
	}
	return nil
}
