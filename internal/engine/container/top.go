package container

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Top lists a container's processes as the host's ps shows them, without ps as far as its arguments allow.
func (m *Manager) Top(ctx context.Context, id, psArgs string) (titles []string, processes [][]string, err error) {
	c, err := m.find(id)
	if err != nil {
		return nil, nil, err
	}
	s := c.snapshot()
	if !s.State.Running || s.State.Restarting {
		return nil, nil, fault.New(fault.Conflict, "container %s is not running", c.id)
	}
	pids, err := m.processes(s.State.PID)
	if err != nil && processGone(err) {
		return nil, nil, fault.New(fault.Conflict, "container %s is not running", c.id)
	}
	if err != nil {
		return nil, nil, err
	}
	if psArgs == "" {
		psArgs = "-ef"
	}
	if err := checkPSArgs(psArgs); err != nil {
		return nil, nil, err
	}
	args := strings.Fields(psArgs)
	list := make([]string, len(pids))
	for i, p := range pids {
		list[i] = strconv.Itoa(p)
	}
	out, err := exec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q"+strings.Join(list, ","))...).Output()
	if err != nil {
		// Some of ps' own options do not go together with -q.
		if out, err = exec.CommandContext(ctx, "ps", args...).Output(); err != nil {
			return m.ownTop(&s, pids, psArgs, err)
		}
	}
	titles, processes, err = parsePS(out, pids)
	if err != nil {
		return nil, nil, err
	}
	m.event(&s, "top")
	return titles, processes, nil
}

var psArgsPID = regexp.MustCompile(`\s+(\S+?)=([^,]*)`)

// checkPSArgs refuses a column title that would hide which column is the PID.
func checkPSArgs(args string) error {
	for _, p := range psArgsPID.FindAllStringSubmatch(" "+args, -1) {
		if p[1] != "pid" && strings.EqualFold(strings.Trim(p[2], `"'`), "PID") {
			return fault.New(fault.InvalidArgument, "specifying \"%s=%s\" is not allowed", p[1], p[2])
		}
	}
	return nil
}

// parsePS keeps the lines of ps' output whose PID is in pids.
func parsePS(out []byte, pids []int) (titles []string, processes [][]string, err error) {
	lines := bytes.Split(bytes.TrimRight(out, "\n"), []byte("\n"))
	titles = strings.Fields(string(lines[0]))
	at := slices.Index(titles, "PID")
	if at < 0 {
		return nil, nil, fault.New(fault.InvalidArgument, "Couldn't find PID field in ps output")
	}
	for _, line := range lines[1:] {
		f := strings.Fields(string(line))
		if len(f) <= at {
			continue
		}
		pid, err := strconv.Atoi(f[at])
		if err != nil || !slices.Contains(pids, pid) {
			continue
		}
		if n := len(titles); len(f) > n { // the command is the last column and has spaces
			f = append(f[:n-1:n-1], strings.Join(f[n-1:], " "))
		}
		processes = append(processes, f)
	}
	return titles, processes, nil
}

// ownTop stands in for a host that has no ps: its most used columns.
func (m *Manager) ownTop(c *Container, pids []int, psArgs string, cause error) ([]string, [][]string, error) {
	if psArgs != "-ef" && psArgs != "aux" {
		if e, ok := errors.AsType[*exec.ExitError](cause); ok {
			if line, _, _ := strings.Cut(strings.TrimSpace(string(e.Stderr)), "\n"); line != "" {
				return nil, nil, fault.New(fault.InvalidArgument, "ps: %s", line)
			}
		}
		return nil, nil, fault.New(fault.FailedPrecondition, "ps %s: %w", psArgs, cause)
	}
	titles := []string{"UID", "PID", "PPID", "CMD"}
	var rows [][]string
	for _, pid := range pids {
		dir := filepath.Join(m.host.procRoot, strconv.Itoa(pid))
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue
		}
		row := []string{"", strconv.Itoa(pid), "", ""}
		for line := range strings.Lines(string(status)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			switch f[0] {
			case "Uid:":
				row[0] = f[1]
			case "PPid:":
				row[2] = f[1]
			case "Name:":
				row[3] = "[" + f[1] + "]"
			}
		}
		if cmd, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(cmd) > 0 {
			row[3] = strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		}
		rows = append(rows, row)
	}
	m.event(c, "top")
	return titles, rows, nil
}

// processes are the PIDs in the cgroup of a process and below it.
func (m *Manager) processes(pid int) ([]int, error) {
	dir, err := m.host.cgroupDir(pid, "pids", "memory", "cpu", "devices", "freezer")
	if err != nil {
		return nil, err
	}
	var pids []int
	err = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return nil
		}
		for f := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(f); err == nil && n > 0 {
				pids = append(pids, n)
			}
		}
		return nil
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}
