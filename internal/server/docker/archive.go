package docker

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// archiveAPI serves the files of containers, as tar archives.
type archiveAPI struct{ backend Containers }

func (a *archiveAPI) routes() []route {
	return []route{
		{method: "HEAD", pattern: "/containers/{id}/archive", serve: a.stat},
		{method: "GET", pattern: "/containers/{id}/archive", serve: a.get},
		{method: "PUT", pattern: "/containers/{id}/archive", serve: a.put},
		{method: "GET", pattern: "/containers/{id}/export", serve: a.export},
	}
}

// archivePath returns the path that a request is about.
func archivePath(r *request) (string, error) {
	path := r.query.Get("path")
	if path == "" {
		return "", fault.New(fault.InvalidArgument, "bad parameter: path cannot be empty")
	}
	return path, nil
}

func setPathStat(w *response, s container.PathStat) {
	body, _ := json.Marshal(apicontainer.PathStat{Name: s.Name, Size: s.Size, Mode: s.Mode, Mtime: s.Mtime, LinkTarget: s.LinkTarget})
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(body))
}

func (a *archiveAPI) stat(w *response, r *request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	s, err := a.backend.StatPath(r.Context(), r.PathValue("id"), path)
	if err != nil {
		return err
	}
	setPathStat(w, s)
	return ok(w, nil)
}

func (a *archiveAPI) get(w *response, r *request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	tar, s, err := a.backend.CopyFrom(r.Context(), r.PathValue("id"), path)
	if err != nil {
		return err
	}
	defer tar.Close()
	setPathStat(w, s)
	return sendTar(w, func(out io.Writer) error {
		_, err := io.CopyBuffer(out, struct{ io.Reader }{tar}, make([]byte, 256<<10)) // as much as comes at once
		return err
	})
}

func (a *archiveAPI) put(w *response, r *request) error {
	path, err := archivePath(r)
	if err != nil {
		return err
	}
	return ok(w, a.backend.CopyTo(r.Context(), r.PathValue("id"), path, r.Body, container.CopyOptions{
		NoOverwriteDirNonDir: r.flag("noOverwriteDirNonDir"), CopyUIDGID: r.flag("copyUIDGID"),
	}))
}

func (a *archiveAPI) export(w *response, r *request) error {
	return sendTar(w, func(out io.Writer) error { return a.backend.Export(r.Context(), r.PathValue("id"), out) })
}

// sendTar answers with an archive that write produces. An error before its first byte becomes the answer; one after it
// breaks the connection, as nothing else keeps a client from taking half an archive for a whole one.
func sendTar(w *response, write func(io.Writer) error) error {
	err := write(&tarWriter{w})
	if err != nil && w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	if err == nil && w.status == 0 {
		w.Header().Set("Content-Type", "application/x-tar")
		w.WriteHeader(http.StatusOK)
	}
	return err
}

// tarWriter sends the content type with the first byte.
type tarWriter struct{ w *response }

func (t *tarWriter) Write(p []byte) (int, error) {
	if t.w.status == 0 {
		t.w.Header().Set("Content-Type", "application/x-tar")
		t.w.WriteHeader(http.StatusOK)
	}
	return t.w.Write(p)
}
