package build

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// broken says why a request to the builder failed.
func (p *program) broken(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if why := p.ended(); why != "" {
		return fault.New(fault.Unavailable, "%s", why)
	}
	return fault.New(fault.Unavailable, "the builder does not answer: %w: try again", err)
}

// ended says how the program has ended, in words for a user whose build went with it; "" if it has not.
func (p *program) ended() string {
	select {
	case <-p.exited:
	case <-time.After(builderEnd): // it is not the program's end
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.why != "":
		return fmt.Sprintf("the builder is gone, and this build with it: %s: run the build again, it gets a new builder", p.why)
	case p.ending:
		return "the builder was ended, and this build with it: the daemon ends"
	}
	return ""
}

// forward hands a request on and the answer back. A builder that ends half-way through an answer is told of in the
// answer's own form.
func (p *program) forward(w http.ResponseWriter, r *http.Request) error {
	switch {
	case r.Header.Get("Upgrade") != "":
		return p.tunnel(w, r)
	case r.ProtoMajor == 2:
		return p.call(w, r)
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", "builder", ""
	res, err := p.transport.RoundTrip(out)
	if err != nil {
		return p.broken(err)
	}
	defer res.Body.Close()
	if res.StatusCode >= http.StatusBadRequest {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		kind := fault.Internal
		if res.StatusCode == http.StatusBadRequest {
			kind = fault.InvalidArgument
		}
		return fault.New(kind, "%s", strings.TrimSpace(string(text)))
	}
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(res.StatusCode)
	to := &flushed{w, http.NewResponseController(w)}
	if _, err = io.Copy(to, res.Body); err == nil || r.Context().Err() != nil {
		return nil
	}
	text := p.broken(err).Error() // also when it is the client who is gone: nobody reads it then
	line, err := json.Marshal(map[string]any{"error": text, "errorDetail": map[string]string{"message": text}})
	if err == nil {
		_, _ = to.Write(append(line, '\n'))
	}
	return nil
}

// call hands on a call of gRPC that came to the API itself, without a tunnel. Its end is in the trailers.
func (p *program) call(w http.ResponseWriter, r *http.Request) error {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", "builder", ""
	res, err := p.calls.RoundTrip(out)
	if err != nil {
		endCall(w, "", p.broken(err))
		return nil
	}
	defer res.Body.Close()
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(res.StatusCode)
	to := &flushed{w, http.NewResponseController(w)}
	_ = to.ctrl.Flush() // a client may wait for the header before it says more
	if _, err := io.Copy(to, res.Body); err != nil && r.Context().Err() == nil {
		endCall(w, http.TrailerPrefix, p.broken(err))
		return nil
	}
	for name, values := range res.Trailer {
		w.Header()[http.TrailerPrefix+name] = values
	}
	return nil
}

// endCall ends a call of gRPC with an error, in the answer's header or, once that has gone, with the prefix of trailers.
func endCall(w http.ResponseWriter, prefix string, err error) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set(prefix+"Grpc-Status", strconv.Itoa(int(codes.Unavailable)))
	w.Header().Set(prefix+"Grpc-Message", url.PathEscape(err.Error()))
}

// refuse answers when there is no builder, and why. A client of gRPC shows what a call is answered, but not the answer to
// its request for a tunnel: it gets the tunnel, and one for its session, where nobody asks it anything.
func refuse(w http.ResponseWriter, r *http.Request, why error) error {
	switch {
	case r.ProtoMajor == 2:
		endCall(w, "", why)
		return nil
	case r.Header.Get("Upgrade") == "":
		return why
	}
	conn, ahead, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		return nil
	}
	if r.URL.Path != "/grpc" {
		_, _ = io.Copy(io.Discard, ahead.Reader)
		return nil
	}
	(&http2.Server{IdleTimeout: time.Minute}).ServeConn(conn, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		endCall(w, "", why)
	})})
	return nil
}

// flushed sends every piece at once: the output of a build is shown as it comes.
type flushed struct {
	w    io.Writer
	ctrl *http.ResponseController
}

func (f *flushed) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.ctrl.Flush()
	}
	return n, err
}

// builderEnd is how long a builder's end may take to be known once a connection to it has broken.
const builderEnd = 5 * time.Second

// lastWords is how long a client has to take what it is told last.
const lastWords = 2 * time.Second

// tunnel joins the client's connection to one to the builder, once that has agreed to the change of protocol.
func (p *program) tunnel(w http.ResponseWriter, r *http.Request) error {
	back, err := p.transport.DialContext(r.Context(), "", "")
	if err != nil {
		return p.broken(err)
	}
	defer back.Close()
	if err := r.Write(back); err != nil {
		return p.broken(err)
	}
	front, ahead, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer front.Close()
	var both sync.WaitGroup
	left := make(chan struct{}) // closed when the client sends no more
	both.Go(func() {
		_, _ = io.Copy(&sink{w: back}, ahead.Reader)
		close(left)
		closeWrite(back)
	})
	var frames frameTail
	_, _ = io.Copy(io.MultiWriter(front, &frames), back)
	select {
	case <-left:
	case <-p.exited:
		// A client of gRPC shows what the last frame says.
		if why := p.ended(); r.URL.Path == "/grpc" && frames.whole() {
			_, _ = front.Write(goAway(why))
		}
	case <-time.After(builderEnd): // an end of this connection alone
	}
	closeWrite(front)
	// The client has what there is; what it may still send goes nowhere. It is taken all the same: a connection that is
	// closed before it is read to its end can take back what was written to it.
	_ = back.Close()
	_ = front.SetReadDeadline(time.Now().Add(lastWords))
	both.Wait()
	return nil
}

// sink writes to the builder for as long as that takes anything, and then nowhere: a client whose builder has died is
// still there, and goes on sending until it is told.
type sink struct {
	w    io.Writer
	dead bool
}

// Write never fails.
func (s *sink) Write(b []byte) (int, error) {
	if !s.dead {
		_, err := s.w.Write(b)
		s.dead = err != nil
	}
	return len(b), nil
}

func closeWrite(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
}

// frameTail follows the frames of HTTP/2 (RFC 9113, section 4.1) behind the answer that changed the protocol, to know
// whether the last one is whole.
type frameTail struct {
	head   []byte // of the frame or answer that is coming
	rest   int    // bytes of the frame's content to come
	frames bool   // the answer is over
}

const (
	frameHeadSize = 9
	maxAnswer     = 16 << 10
)

// Write follows.
func (f *frameTail) Write(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch {
		case !f.frames:
			f.head = append(f.head, b[i])
			i++
			if n := len(f.head); n >= 4 && string(f.head[n-4:]) == "\r\n\r\n" {
				f.frames, f.head = true, nil
			} else if n > maxAnswer {
				f.head = f.head[n-4:]
			}
		case f.rest > 0:
			n := min(f.rest, len(b)-i)
			f.rest -= n
			i += n
		default:
			f.head = append(f.head, b[i])
			i++
			if len(f.head) == frameHeadSize {
				f.rest = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
				f.head = f.head[:0]
			}
		}
	}
	return len(b), nil
}

// whole reports whether a frame of another's may follow.
func (f *frameTail) whole() bool { return f.frames && f.rest == 0 && len(f.head) == 0 }

// goAway is a GOAWAY frame (RFC 9113, section 6.8) with a text for people.
func goAway(text string) []byte {
	const kind, internalError, lastStream = 0x7, 0x2, 1<<31 - 1
	size := 8 + len(text)
	b := []byte{byte(size >> 16), byte(size >> 8), byte(size), kind, 0, 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, lastStream)
	b = binary.BigEndian.AppendUint32(b, internalError)
	return append(b, text...)
}
