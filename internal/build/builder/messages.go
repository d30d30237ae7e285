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
	mu   sync.Mutex
	enc  *json.Encoder
	ctrl *http.ResponseController
}

func newMessages(w http.ResponseWriter) *messages {
	return &messages{enc: json.NewEncoder(w), ctrl: http.NewResponseController(w)}
}

func (m *messages) send(msg message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enc.Encode(msg); err != nil {
		return err
	}
	return m.ctrl.Flush()
}

func (m *messages) text(s string) error { return m.send(message{Stream: s}) }

func (m *messages) fail(text string, code ...int) {
	d := &messageError{Message: text}
	if len(code) > 0 {
		d.Code = code[0]
	}
	_ = m.send(message{Error: text, Detail: d})
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

func (t *trace) done(id string) error {
	if id == "" {
		return nil
	}
	return t.out.send(message{ID: "moby.image.id", Aux: imageID{id}})
}
