package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

// measure is one figure. setup makes what every sample of one engine shares (its lab), sample takes one value.
type measure struct {
	name, unit string
	goal       string // of the ratio, or of the value
	hosts      int
	cluster    bool // the hosts are one cluster when sample is called
	fresh      bool // a new lab for each sample, daemons not started
	samples    int  // 0: as many as asked for
	disk       bool // hosts and files are on a new file system
	higher     bool // more is better
	sample     func(ctx context.Context, l *lab) (float64, error)
}

// lab is one engine's hosts.
type lab struct {
	*testhost.Lab
	engine engine
	tool   string // the program of the image, on this machine
	tmp    string // folder of what is made once for all labs of a measurement
	round  int

	registry *testhost.Registry // once one was needed
	pushed   string             // the name of the big image there
	made     map[string]bool    // what later samples find
}

func (l *lab) first() *testhost.Host { return l.Hosts[0] }

// say prints what one sample found, for who watches: where several programs share a machine, CPU time tells more than the
// clock.
func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  %s: %s\n", l.engine.name, fmt.Sprintf(format, args...))
}

type row struct {
	measure
	values map[string][]float64
	note   string // why the peer has no value
}

type bench struct {
	engines []engine
	runs    int
	tool    string
	tmp     string
	peer    string
	rows    []row
}

// measure takes samples of every engine in turn: A B A B …, so that a machine that changes its speed changes both.
func (b *bench) measure(ctx context.Context, m measure) (r row, err error) {
	r = row{measure: m, values: map[string][]float64{}}
	runs := b.runs
	if m.samples > 0 {
		runs = min(runs, m.samples)
	}
	tmp := b.tmp
	if m.disk {
		d, derr := newDisk(ctx, b.tmp)
		if derr != nil {
			return r, derr
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		tmp = d.dir
	}
	labs := make([]*lab, len(b.engines))
	defer func() {
		for _, l := range labs {
			if l != nil {
				err = errors.Join(err, l.Close(ctx))
			}
		}
	}()
	for round := range runs {
		for i, e := range b.engines {
			if err := ctx.Err(); err != nil {
				return r, err
			}
			if e.name == "docker" && r.note != "" {
				continue
			}
			v, err := b.sample(ctx, m, e, &labs[i], tmp, round)
			switch {
			case err == nil:
				r.values[e.name] = append(r.values[e.name], v)
			case e.name == "docker" && ctx.Err() == nil: // a peer that cannot run here is a note, not the end of the run
				r.note = fmt.Sprintf("no value of Docker for “%s”: %s", m.name, firstLine(err))
				fmt.Fprintf(os.Stderr, "%s: %v\n", m.name, err)
				delete(r.values, e.name)
			default:
				return r, fmt.Errorf("%s: %w", e.name, err)
			}
		}
	}
	return r, nil
}

// sample takes one value of one engine, in its lab, which is made where it is missing or must be new.
func (b *bench) sample(ctx context.Context, m measure, e engine, l **lab, tmp string, round int) (v float64, err error) {
	if *l != nil && m.fresh {
		err := (*l).Close(ctx)
		*l = nil
		if err != nil {
			return 0, err
		}
	}
	if *l == nil {
		if *l, err = b.newLab(ctx, e, m, tmp); err != nil {
			return 0, err
		}
	}
	(*l).round = round
	if v, err = m.sample(ctx, *l); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, (*l).first().LogTail(10))
	}
	return v, nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (b *bench) newLab(ctx context.Context, e engine, m measure, tmp string) (*lab, error) {
	if m.disk {
		dir, err := os.MkdirTemp(tmp, "sl-")
		if err != nil {
			return nil, err
		}
		e.options.Dir = dir
	}
	tl, err := testhost.NewLab(ctx, m.hosts, e.options)
	if err != nil {
		return nil, err
	}
	l := &lab{Lab: tl, engine: e, tool: b.tool, tmp: tmp}
	if m.fresh {
		return l, nil
	}
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(err, l.Close(ctx))
	}
	if m.cluster {
		if err := l.Swarm(ctx, 1); err != nil {
			return nil, errors.Join(err, l.Close(ctx))
		}
	}
	return l, nil
}

// up starts the daemons and gives each host the image.
func (l *lab) up(ctx context.Context) error {
	if err := l.StartAll(ctx); err != nil {
		return err
	}
	return l.Each(func(h *testhost.Host) error {
		_, err := h.DockerInput(ctx, l.engine.archive, "load")
		return err
	})
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// ratio is the median of the pairs' ratios.
func (r row) ratio() (float64, bool) {
	a, b := r.values["sampan"], r.values["docker"]
	if len(b) == 0 {
		return 0, false
	}
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return median(ratios), true
}

// String is the row of the Markdown table.
func (r row) String() string {
	peer, ratio := "–", "–"
	if v, ok := r.ratio(); ok {
		peer = r.value("docker")
		ratio = fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %d |", r.name, r.value("sampan"), peer, ratio, r.goal, len(r.values["sampan"]))
}

// value is an engine's median, with three digits that count.
func (r row) value(engine string) string {
	v := median(r.values[engine])
	digits := 0
	for limit := 100.0; v < limit && digits < 3; limit /= 10 {
		digits++
	}
	return strings.TrimSpace(fmt.Sprintf("%.*f %s", digits, v, r.unit))
}

func (b *bench) report() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	kernel, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-") // the version; what follows names a build
	var s unix.Sysinfo_t
	_ = unix.Sysinfo(&s)
	peer := b.peer
	if peer == "" {
		peer = "not installed"
	}
	var t strings.Builder
	fmt.Fprintf(&t, `# Performance

Written by `+"`make bench`"+`, which measures Sampan and docker.io's dockerd in turn (A B A B …) in one run, through the same
docker command, each in hosts of its own (network namespaces). Values are medians; the ratio is the median of the pairs'
ratios, Sampan to Docker. What is smaller is better, unless the name says otherwise.

Machine: %d cores, %d GiB, Linux %s, %s. Peer: %s. Date: %s.

| what | Sampan | Docker | ratio | goal | pairs |
|---|---|---|---|---|---|
`, runtime.NumCPU(), s.Totalram*uint64(s.Unit)>>30, kernel, runtime.GOARCH, peer, time.Now().UTC().Format(time.DateOnly))
	for _, r := range b.rows {
		fmt.Fprintln(&t, r)
	}
	for _, r := range b.rows {
		if r.note != "" {
			fmt.Fprintf(&t, "\nThere is %s.\n", r.note)
		}
	}
	if notes, err := os.ReadFile("docs/performance-notes.md"); err == nil {
		t.WriteString("\n")
		t.Write(notes)
	}
	return t.String()
}
