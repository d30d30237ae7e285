package builder

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"path"
	"regexp"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/archiveutil"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// A client of the classic builder sends the Dockerfile and .dockerignore with the context also when .dockerignore names
// them, as the builder needs them; they are not part of what COPY sees. (What else .dockerignore names, the client leaves
// out.) So a context that brings such a .dockerignore is given to BuildKit twice: whole, for the Dockerfile, and without
// the two.

const dockerignore = ".dockerignore"

// peeked is how much of a context is looked at for .dockerignore: clients send it among the first files, by its name.
const peeked = 1 << 20

// lookAhead returns the context as it was, and which of the Dockerfile and .dockerignore its .dockerignore names.
func lookAhead(body io.ReadCloser, dockerfile string) (io.ReadCloser, []string) {
	r := bufio.NewReaderSize(body, peeked)
	begin, _ := r.Peek(peeked) // fewer: all there is, or an error that the next reader sees too
	return struct {
		io.Reader
		io.Closer
	}{r, body}, ignored(begin, dockerfile)
}

// ignored reads the beginning of a context.
func ignored(begin []byte, dockerfile string) []string {
	if dockerfile == "" {
		dockerfile = "Dockerfile"
	}
	dockerfile = strings.TrimPrefix(path.Clean("/"+dockerfile), "/")
	own := []string{dockerfile, dockerignore}
	text := findInTar(bytes.NewReader(begin), "/"+dockerignore)
	if text == nil {
		// The docker command puts a Dockerfile of its standard input (-f -) at the end, and a .dockerignore that names
		// both beside it where there was none.
		if ofCommand.MatchString(dockerfile) && archiveutil.IsArchive(begin) {
			return own
		}
		return nil
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return nil
	}
	var out []string
	for _, name := range own {
		if no, err := patternmatcher.MatchesOrParentMatches(name, patterns); err == nil && no {
			out = append(out, name)
		}
	}
	return out
}

// ofCommand is how the docker command names the Dockerfile of its standard input.
var ofCommand = regexp.MustCompile(`^\.dockerfile\.[0-9a-f]{20}$`)

// withoutIgnored is the context at a URL in BuildKit's words, for the Dockerfile and for what is copied out of it.
func withoutIgnored(ctx context.Context, url string, names []string) (map[string]*pb.Definition, error) {
	const file = "context"
	whole := llb.Scratch().File(llb.Copy(llb.HTTP(url, llb.Filename(file), llb.WithCustomName("[internal] load remote build context")), "/"+file, "/",
		&llb.CopyInfo{AttemptUnpack: true}), llb.WithCustomName("[internal] unpack the build context"))
	patterns := make([]string, len(names))
	for i, name := range names {
		patterns[i] = special.ReplaceAllString(name, `\$0`)
	}
	rest := llb.Scratch().File(llb.Copy(whole, "/", "/", &llb.CopyInfo{CopyDirContentsOnly: true, ExcludePatterns: patterns}),
		llb.WithCustomName("[internal] leave out what .dockerignore names"))
	out := map[string]*pb.Definition{}
	for name, state := range map[string]llb.State{"dockerfile": whole, "context": rest} {
		def, err := state.Marshal(ctx)
		if err != nil {
			return nil, err
		}
		out[name] = def.ToPB()
	}
	return out, nil
}

// special are the characters that mean something in a pattern.
var special = regexp.MustCompile(`[*?\[\]\\]`)
