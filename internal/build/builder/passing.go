package builder

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// maxDockerfile bounds what is read of a Dockerfile.
const maxDockerfile = 1 << 20

// passing is a context, a tar archive, out of which the Dockerfile is read while it passes by.
type passing struct {
	io.Reader
	body io.Closer
	pipe *io.PipeWriter
	done chan struct{} // closed when the Dockerfile was read, or is not there
	text []byte
}

// watchFor returns body as a context whose file of that name is read.
func watchFor(body io.ReadCloser, name string) *passing {
	r, w := io.Pipe()
	p := &passing{body: body, pipe: w, done: make(chan struct{})}
	p.Reader = &teeReader{r: body, w: w}
	if name == "" {
		name = "Dockerfile"
	}
	go func() {
		p.text = findInTar(r, path.Clean("/"+name))
		close(p.done)
		_, _ = io.Copy(io.Discard, r) // the rest must pass
	}()
	return p
}

// Close ends the passing by.
func (p *passing) Close() error {
	_ = p.pipe.Close()
	return p.body.Close()
}

// teeReader is io.TeeReader that also passes the end on, and that no failure of the second reader disturbs.
type teeReader struct {
	r io.Reader
	w *io.PipeWriter
}

// Read reads.
func (t *teeReader) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	if n > 0 {
		_, _ = t.w.Write(b[:n])
	}
	if err != nil {
		_ = t.w.CloseWithError(err)
	}
	return n, err
}

// findInTar returns the content of a file of an archive, nil if it cannot be had.
func findInTar(r io.Reader, name string) []byte {
	stream, err := compression.DecompressStream(r)
	if err != nil {
		return nil
	}
	defer stream.Close()
	for tr := tar.NewReader(stream); ; {
		h, err := tr.Next()
		if err != nil {
			return nil
		}
		if path.Clean("/"+h.Name) != name || h.Typeflag != tar.TypeReg {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(tr, maxDockerfile))
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		return text
	}
}

// stages waits for the Dockerfile and returns what it says, and what it declares before the first stage; nothing if it is
// not there or not right.
func (p *passing) stages() ([]instructions.Stage, []instructions.ArgCommand) {
	<-p.done
	if p.text == nil {
		return nil, nil
	}
	file, err := parser.Parse(bytes.NewReader(p.text))
	if err != nil {
		return nil, nil
	}
	stages, args, err := instructions.Parse(file.AST, nil)
	if err != nil {
		return nil, nil
	}
	return stages, args
}
