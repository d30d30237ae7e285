package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"github.com/sampan-cloud/sampan/internal/build"
)

// classic shows a build as the classic builder did: "Step 2/3 : RUN …", what steps print, "Successfully built …". The
// steps come from the Dockerfile, which is read out of the context as that passes by; when a step begins, BuildKit's
// name for it, "[STAGE 2/3] RUN …", tells which one it is. A Dockerfile that is elsewhere is not known: then those names
// are shown.
type classic struct {
	out  *messages
	req  *build.Request
	file *passing // nil: the context is not in the request

	mu      sync.Mutex
	plan    *plan
	planned bool
	shown   map[digest.Digest]bool // vertices whose step was shown
	cached  map[digest.Digest]bool
	ended   map[digest.Digest]bool
	steps   map[digest.Digest]bool // vertices that are steps
}

func newClassic(out *messages, r *build.Request, file *passing) *classic {
	return &classic{out: out, req: r, file: file, shown: map[digest.Digest]bool{}, cached: map[digest.Digest]bool{},
		ended: map[digest.Digest]bool{}, steps: map[digest.Digest]bool{}}
}

// stepName is how BuildKit names the vertex of a step: with the stage where there are several, its number and how many
// the stage has.
var stepName = regexp.MustCompile(`^\[(?:(\S+) +)?(\d+)/(\d+)\] (.*)$`)

func (c *classic) status(r *controlapi.StatusResponse) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range r.Vertexes {
		d := digest.Digest(v.Digest)
		m := stepName.FindStringSubmatch(v.Name)
		if m == nil {
			continue
		}
		c.steps[d] = true
		if (v.Started != nil || v.Cached) && !c.shown[d] {
			c.shown[d] = true
			c.announce(m[1], number(m[2]), number(m[3]), m[4])
		}
		if v.Cached && !c.cached[d] && !strings.HasPrefix(m[4], "FROM ") {
			c.cached[d] = true
			_ = c.text(" ---> Using cache\n")
		}
		if v.Completed != nil && !c.ended[d] && v.Error == "" {
			c.ended[d] = true
			_ = c.text(" ---> " + short(d) + "\n")
		}
	}
	for _, l := range r.Logs {
		if c.steps[digest.Digest(l.Vertex)] {
			_ = c.text(string(l.Msg))
		}
	}
	return nil
}

// text shows a line, unless the client wants to hear of the result only.
func (c *classic) text(s string) error {
	if c.req.Quiet {
		return nil
	}
	return c.out.text(s)
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // digits
	return n
}

func short(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// announce shows that a step begins, and before it those of its stage that make no layer. c.mu is held.
func (c *classic) announce(stage string, n, of int, text string) {
	c.read()
	if c.plan == nil {
		_ = c.text(fmt.Sprintf("Step %d/%d : %s\n", n, of, text))
		return
	}
	if extra := c.plan.triggers(stage, of); extra > 0 && n == 2 {
		plural := ""
		if extra > 1 {
			plural = "s"
		}
		_ = c.text(fmt.Sprintf("# Executing %d build trigger%s\n", extra, plural))
	}
	for _, i := range c.plan.upTo(stage, n, of) {
		c.say(i)
	}
}

// read takes the Dockerfile that has passed by. c.mu is held.
func (c *classic) read() {
	if c.planned || c.file == nil {
		return
	}
	c.planned = true
	if stages, args := c.file.stages(); len(stages) > 0 {
		c.plan = newPlan(stages)
		c.plan.declare(args)
	}
}

func (c *classic) say(i int) {
	_ = c.text(fmt.Sprintf("Step %d/%d : %s\n", i+1, len(c.plan.lines), c.plan.lines[i].text))
}

func (c *classic) done(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read(); c.plan != nil {
		for _, i := range c.plan.remaining(c.req.Target) {
			c.say(i)
		}
		if unused := c.plan.undeclared(c.req.Args); len(unused) > 0 {
			_ = c.text(fmt.Sprintf("[Warning] One or more build-args %v were not consumed\n", unused))
		}
	}
	if id == "" {
		return nil
	}
	if c.req.Quiet {
		return c.out.text(id + "\n")
	}
	if err := c.out.send(message{Aux: imageID{id}}); err != nil {
		return err
	}
	if err := c.out.text("Successfully built " + short(digest.Digest(id)) + "\n"); err != nil {
		return err
	}
	names, err := completeNames(strings.Join(c.req.Tags, ","))
	if err != nil {
		return err
	}
	for _, n := range names {
		named, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return err
		}
		if err := c.out.text("Successfully tagged " + reference.FamiliarString(named) + "\n"); err != nil {
			return err
		}
	}
	return nil
}

// failedStep is how BuildKit tells of a step that failed.
var failedStep = regexp.MustCompile(`process ("(?:[^"\\]|\\.)*") did not complete successfully: exit code: (\d+)`)

// failure tells of an error in the classic builder's words.
func (c *classic) failure(err error) {
	if m := failedStep.FindStringSubmatch(err.Error()); m != nil && !errors.Is(err, context.Canceled) {
		command, err := strconv.Unquote(m[1])
		if err != nil {
			command = m[1]
		}
		c.out.fail(fmt.Sprintf("The command '%s' returned a non-zero code: %s", command, m[2]), number(m[2]))
		return
	}
	text := plain(err)
	switch m := missingFile.FindStringSubmatch(text); {
	case m != nil:
		text = fmt.Sprintf("COPY failed: file not found in build context or excluded by .dockerignore: stat %s: file does not exist", strings.TrimPrefix(m[1], "/"))
	case text == "the Dockerfile cannot be empty":
		text = fmt.Sprintf("the Dockerfile (%s) cannot be empty", cmp.Or(c.req.Dockerfile, "Dockerfile"))
	case strings.Contains(text, "failed to resolve source metadata for "):
		c.mu.Lock()
		if c.read(); c.plan != nil { // the steps begin when all images are known: here is the one that was not
			for _, i := range c.plan.take(0, 1) {
				c.say(i)
			}
		}
		c.mu.Unlock()
	}
	c.out.fail(text, 0)
}

// missingFile is how BuildKit tells of a source of COPY or ADD that is not in the context.
var missingFile = regexp.MustCompile(`^failed to compute cache key: .*: "([^"]+)": not found$`)

// plan is a Dockerfile as a list of steps.
type plan struct {
	lines  []line
	stages []planStage
	args   map[string]bool // that are declared by ARG, or need not be
}

type line struct {
	text string
	said bool
}

// planStage is a stage's part of the list.
type planStage struct {
	name    string // BuildKit's
	from    int    // its first line
	end     int    // the line behind its last
	layers  []int  // the lines that BuildKit counts as steps; the first is FROM if it is one
	counted bool   // FROM is one
	begun   bool
}

func newPlan(stages []instructions.Stage) *plan {
	p := &plan{args: map[string]bool{}}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		p.args[name], p.args[strings.ToLower(name)] = true, true
	}
	known := map[string]bool{}
	for i, s := range stages {
		st := planStage{name: s.Name, from: len(p.lines)}
		if st.name == "" {
			st.name = fmt.Sprintf("stage-%d", i)
		}
		if len(stages) == 1 {
			st.name = ""
		}
		if st.counted = s.BaseName != "scratch" && !known[strings.ToLower(s.BaseName)]; st.counted {
			st.layers = append(st.layers, len(p.lines))
		}
		p.lines = append(p.lines, line{text: s.OrigCmd + " " + strings.TrimSpace(strings.TrimPrefix(s.SourceCode, s.OrigCmd))})
		for _, cmd := range s.Commands {
			switch cmd.(type) {
			case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
				st.layers = append(st.layers, len(p.lines))
			}
			if arg, ok := cmd.(*instructions.ArgCommand); ok {
				p.declare([]instructions.ArgCommand{*arg})
			}
			text := cmd.Name()
			if s, ok := cmd.(fmt.Stringer); ok {
				text = s.String()
			}
			p.lines = append(p.lines, line{text: text})
		}
		st.end = len(p.lines)
		p.stages = append(p.stages, st)
		known[strings.ToLower(s.Name)] = s.Name != ""
	}
	return p
}

func (p *plan) declare(args []instructions.ArgCommand) {
	for _, a := range args {
		for _, kv := range a.Args {
			p.args[kv.Key] = true
		}
	}
}

// undeclared returns those of the arguments given that no instruction asks for.
func (p *plan) undeclared(given map[string]*string) []string {
	var out []string
	for name := range given {
		if !p.args[name] && !strings.HasPrefix(name, "BUILDKIT_") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// triggers is how many of the stage's steps are not its own but what its base image has the build do (ONBUILD).
func (p *plan) triggers(stage string, of int) int {
	for i := range p.stages {
		if s := &p.stages[i]; s.name == stage && s.counted {
			return of - len(s.layers)
		}
	}
	return 0
}

// upTo returns the lines to be shown now that step n of the stage begins.
func (p *plan) upTo(stage string, n, of int) []int {
	for i := range p.stages {
		s := &p.stages[i]
		if s.name != stage {
			continue
		}
		s.begun = true
		// What a base image has the build do (ONBUILD) is counted too, behind FROM.
		if extra := of - len(s.layers); extra > 0 && n > 1 {
			n = max(n-extra, 1)
		}
		if n > len(s.layers) {
			return nil
		}
		return p.take(s.from, s.layers[n-1]+1)
	}
	return nil
}

// remaining returns what the end of a build leaves to be shown: the last lines of stages that were built.
func (p *plan) remaining(target string) []int {
	var out []int
	for i := range p.stages {
		s := &p.stages[i]
		if s.begun || target == "" && i == len(p.stages)-1 || target != "" && strings.EqualFold(s.name, target) {
			out = append(out, p.take(s.from, s.end)...)
		}
	}
	return out
}

// take returns those of the lines that were not shown yet.
func (p *plan) take(from, to int) []int {
	var out []int
	for i := from; i < to; i++ {
		if !p.lines[i].said {
			p.lines[i].said = true
			out = append(out, i)
		}
	}
	return out
}
