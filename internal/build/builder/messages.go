package builder

import (
	"encoding/json"
	"net/http"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/proto"
)

// message is one line of the answer to /build, in Docker's form.
type message struct {
	Stream string        `json:"stream,omitempty"`
	Status string        `json:"status,omitempty"`
	ID     string        `json:"id,omitempty"`
	Aux    any           `json:"aux,omitempty"`
	Error  string        `json:"error,omitempty"`
	Detail *messageError `json:"errorDetail,omitempty"`
}

type messageError struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// messages writes lines of an answer, each at once.
type messages struct {
	w    http.ResponseWriter
	mu   sync.Mutex
	any  bool // one was sent
	enc  *json.Encoder
	ctrl *http.ResponseController
}

func newMessages(w http.ResponseWriter) *messages {
	return &messages{w: w, enc: json.NewEncoder(w), ctrl: http.NewResponseController(w)}
}

func (m *messages) send(msg message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.any {
		m.any = true
		m.w.Header().Set("Content-Type", "application/json")
	}
	if err := m.enc.Encode(msg); err != nil {
		return err
	}
	return m.ctrl.Flush()
}

func (m *messages) text(s string) error { return m.send(message{Stream: s}) }

// fail ends the answer with an error, code being that of a step that failed, or 0. Before the first message the error is
// the answer: something is wrong with the request.
func (m *messages) fail(text string, code int) {
	m.mu.Lock()
	first := !m.any
	m.any = true
	m.mu.Unlock()
	if first {
		http.Error(m.w, text, http.StatusBadRequest)
		return
	}
	_ = m.send(message{Error: text, Detail: &messageError{Code: code, Message: text}})
}

type imageID struct{ ID string }

// trace shows a build as version 2 of /build does: BuildKit's own reports, which the client draws.
type trace struct{ out *messages }

func (t *trace) status(r *controlapi.StatusResponse) error {
	b, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return t.out.send(message{ID: "moby.buildkit.trace", Aux: b})
}

func (t *trace) failure(err error) { t.out.fail(plain(err), 0) }

func (t *trace) done(id string) error {
	if id == "" {
		return nil
	}
	return t.out.send(message{ID: "moby.image.id", Aux: imageID{id}})
}
