package docker

import (
	"log/slog"
	"net/http"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// execAPI serves processes run in containers besides their first.
type execAPI struct {
	backend Containers
	logger  *slog.Logger
}

func (a *execAPI) routes() []route {
	return []route{
		{method: "POST", pattern: "/containers/{id}/exec", serve: a.create},
		{method: "POST", pattern: "/exec/{id}/start", serve: a.start},
		{method: "POST", pattern: "/exec/{id}/resize", serve: a.resize},
		{method: "GET", pattern: "/exec/{id}/json", serve: a.inspect},
	}
}

func (a *execAPI) create(w *response, r *request) error {
	var body struct {
		apicontainer.ExecCreateRequest
		Detach bool // was in the body before 1.42
	}
	if err := r.decode(&body); err != nil {
		return err
	}
	if len(body.Cmd) == 0 {
		return fault.New(fault.InvalidArgument, "No exec command specified")
	}
	if _, err := parseDetachKeys(body.DetachKeys); err != nil {
		return err
	}
	cfg := container.ExecConfig{
		User: body.User, Privileged: body.Privileged, Tty: body.Tty, AttachStdin: body.AttachStdin, AttachStdout: body.AttachStdout,
		AttachStderr: body.AttachStderr, Detach: body.Detach, DetachKeys: body.DetachKeys, Env: body.Env, WorkingDir: body.WorkingDir, Cmd: body.Cmd,
	}
	if r.version >= 1042 {
		cfg.ConsoleSize = consoleSize(body.ConsoleSize)
	}
	id, err := a.backend.ExecCreate(r.Context(), r.PathValue("id"), cfg)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apicontainer.ExecCreateResponse{ID: id})
}

func consoleSize(in *[2]uint) (out [2]uint16) {
	if in != nil {
		out[0], out[1] = uint16(min(in[0], 1<<16-1)), uint16(min(in[1], 1<<16-1))
	}
	return out
}

func (a *execAPI) start(w *response, r *request) error {
	var body apicontainer.ExecStartRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	id := r.PathValue("id")
	e, err := a.backend.ExecGet(id)
	if err != nil {
		return err
	}
	tty := e.Config.Tty
	size := e.Config.ConsoleSize
	if body.Tty && body.ConsoleSize != nil && r.version >= 1042 {
		size = consoleSize(body.ConsoleSize)
	}
	// Whether the process has a terminal was said when the exec was made; how its output is sent is said now.
	raw := body.Tty
	if body.Detach {
		_, err := a.backend.ExecStart(r.Context(), id, container.ExecStartOptions{Detach: true, Size: size})
		return ok(w, err)
	}
	// The client is told that the stream begins before the process is made: some read what comes along with the answer's
	// head into a buffer that they do not look into again.
	var conn *hijacked
	stream, err := a.backend.ExecStart(r.Context(), id, container.ExecStartOptions{Size: size, Ready: func() (err error) {
		conn, err = hijack(w, r, !raw)
		return err
	}})
	if conn == nil {
		return err
	}
	if err != nil {
		// Clients learn from the exec's exit code that it did not start, and print the stream for the reason.
		_ = a.printFailure(conn, err, raw)
		return nil
	}
	defer stream.Close()
	p := pump{logger: a.logger, stream: stream, tty: tty, raw: raw, stdin: e.Config.AttachStdin}
	if tty {
		if p.keys, err = parseDetachKeys(e.Config.DetachKeys); err != nil {
			p.keys = defaultDetachKeys
		}
	}
	p.run(conn)
	return nil
}

func (a *execAPI) printFailure(conn *hijacked, err error, raw bool) error {
	read := make(chan struct{})
	close(read)
	defer conn.finish(read)
	msg := []byte(err.Error() + "\r\n")
	if raw {
		_, werr := conn.Write(msg)
		return werr
	}
	if fault.Is(err, fault.Unavailable) { // not the program's doing
		return frameWriter{conn}.frame(systemError, "", msg)
	}
	return frameWriter{conn}.frame(container.Stdout, "", msg)
}

func (a *execAPI) resize(w *response, r *request) error {
	rows, cols, err := r.size()
	if err != nil {
		return err
	}
	return ok(w, a.backend.ExecResize(r.Context(), r.PathValue("id"), rows, cols))
}

func (a *execAPI) inspect(w *response, r *request) error {
	e, err := a.backend.ExecGet(r.PathValue("id"))
	if err != nil {
		return err
	}
	keys, err := parseDetachKeys(e.Config.DetachKeys)
	if err != nil || e.Config.DetachKeys == "" {
		keys = nil
	}
	out := apicontainer.ExecInspectResponse{
		ID: e.ID, Running: e.Running, ExitCode: e.ExitCode, OpenStdin: e.Config.AttachStdin, OpenStdout: e.Config.AttachStdout,
		OpenStderr: e.Config.AttachStderr, ContainerID: e.ContainerID, Pid: e.PID, DetachKeys: list(keys),
		ProcessConfig: &apicontainer.ExecProcessConfig{Tty: e.Config.Tty, Privileged: &e.Config.Privileged, User: e.Config.User},
	}
	if len(e.Config.Cmd) > 0 {
		out.ProcessConfig.Entrypoint, out.ProcessConfig.Arguments = e.Config.Cmd[0], list(e.Config.Cmd[1:])
	}
	return writeJSON(w, http.StatusOK, out)
}
