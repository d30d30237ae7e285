package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Groups are the folders of a container's control groups by controller: "freezer", "cpu" and others of version 1, "" the
// one of version 2. With both versions the processes are in all of them.
type Groups map[string]string

// Held is what files of control groups said before they were changed, by path.
type Held map[string]string

const (
	// liftAfter is how long a freeze is waited for before limits on the CPU are lifted: most groups are frozen at once.
	liftAfter = 20 * time.Millisecond
	// firstTry is how long the first attempt takes; each after it takes twice as long.
	firstTry = 250 * time.Millisecond
	// gasp is how long the processes go on between two attempts.
	gasp = 10 * time.Millisecond
)

// Freeze stops every process in the groups and returns when all of them stand still. Such a state is reached as soon as
// each has run for a moment, which takes long where it hardly gets to: so after a while the groups' limits on the CPU are
// lifted, and put back before this returns. note is called with the limits before they are lifted, for whoever has to
// Restore them if this process dies meanwhile; lifted is called after. With version 1 a process with threads that becomes
// another program waits for these to end, which they cannot once they are frozen, and does not stop itself: what does not
// stop for a while is let go on for a moment, ever more rarely. When ctx ends first the processes go on, and the error
// names some that did not stop.
func Freeze(ctx context.Context, groups Groups, note func(Held) error, lifted func()) (err error) {
	f, err := freezerOf(groups)
	if err != nil {
		return err
	}
	if err := f.set(true); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.set(false))
		}
	}()
	var held Held
	defer func() { err = errors.Join(err, held.Restore()) }()
	began := time.Now()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	try, tryBegan := firstTry, began
	for {
		if frozen, err := f.frozen(); err != nil || frozen {
			return err
		}
		if held == nil && time.Since(began) > liftAfter {
			held = cpuLimits(groups)
			if err := note(held); err != nil {
				return err
			}
			lift(held)
			lifted()
		}
		if time.Since(tryBegan) > try {
			if err := f.set(false); err != nil {
				return err
			}
			time.Sleep(gasp)
			if err := f.set(true); err != nil {
				return err
			}
			try, tryBegan = 2*try, time.Now()
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", f.standing(), context.Cause(ctx))
		}
	}
}

// Thaw lets the processes in the groups go on. Groups that are not there any more are no error.
func Thaw(groups Groups) error {
	f, err := freezerOf(groups)
	if err != nil {
		return nil // nothing freezes them
	}
	return ignoreGone(f.set(false))
}

// ThawBelow is Thaw for the groups and those made in them, as by a container that runs others, but for the folders in besides
// and what is in those.
func ThawBelow(groups Groups, besides map[string]bool) error {
	f, err := freezerOf(groups)
	if err != nil {
		return nil
	}
	errs := []error{}
	_ = filepath.WalkDir(f.dir, func(dir string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return nil
		case besides[dir]:
			return filepath.SkipDir
		}
		errs = append(errs, ignoreGone(freezer{dir, f.version}.set(false)))
		return nil
	})
	return errors.Join(errs...)
}

// MoveOut takes processes of the groups out of version 1's freezer, so that they go on whoever froze them: it moves them to
// its root, where nothing is frozen. One that was killed can die then, as with version 2 it can anywhere.
func MoveOut(groups Groups, pids ...int) error {
	root := groups["freezer"]
	if root == "" {
		return nil
	}
	for exists(filepath.Join(root, "freezer.state")) {
		root = filepath.Dir(root)
	}
	var errs []error
	for _, pid := range pids {
		if err := write(filepath.Join(root, "cgroup.procs"), strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Frozen tells whether the processes of the groups stand still, or are about to: frozen by one of the groups or by one
// above.
func Frozen(groups Groups) bool {
	if group := groups[""]; group != "" {
		text, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if err == nil && strings.Contains(string(text), "frozen 1\n") {
			return true
		}
	}
	if group := groups["freezer"]; group != "" {
		state := stateV1(group)
		return state != "" && state != "THAWED"
	}
	return false
}

// FrozenAbove returns the file by which a control group above the given ones is frozen, empty if none is. They need not be
// there yet.
func FrozenAbove(groups Groups) string {
	if group := groups["freezer"]; group != "" {
		for dir := filepath.Dir(group); len(dir) > 1; dir = filepath.Dir(dir) {
			// A group's state has in it that of those above; those have been made, or there is none.
			if state := stateV1(dir); state == "" {
				if !exists(dir) {
					continue
				}
				break // the root
			} else if state == "THAWED" {
				break
			}
			if text, err := os.ReadFile(filepath.Join(dir, "freezer.self_freezing")); err == nil && strings.TrimSpace(string(text)) == "1" {
				return filepath.Join(dir, "freezer.state")
			}
		}
	}
	if group := groups[""]; group != "" {
		for dir := filepath.Dir(group); len(dir) > 1; dir = filepath.Dir(dir) {
			text, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze"))
			if err != nil && exists(dir) {
				break // the root
			}
			if strings.TrimSpace(string(text)) == "1" {
				return filepath.Join(dir, "cgroup.freeze")
			}
		}
	}
	return ""
}

// ThawCommand is what makes the group go on whose file FrozenAbove returned.
func ThawCommand(file string) string {
	if filepath.Base(file) == "freezer.state" {
		return "echo THAWED > " + file
	}
	return "echo 0 > " + file
}

// Restore writes back what was changed. Groups that are not there any more are no error.
func (h Held) Restore() error {
	var errs []error
	for file, text := range h {
		if now, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(now)) == text {
			continue
		}
		errs = append(errs, ignoreGone(write(file, text)))
	}
	return errors.Join(errs...)
}

// unlimited is what the files that limit the use of a CPU say without a limit, or with the most of it.
var unlimited = map[string]string{
	"cpu.cfs_quota_us": "-1",
	"cpu.shares":       "262144",
	"cpu.max":          "max",
	"cpu.weight":       "10000",
}

// cpuLimits is what the groups, and those made in them, have as limits on the CPU.
func cpuLimits(groups Groups) Held {
	held := Held{}
	for _, controller := range []string{"cpu", ""} {
		if groups[controller] == "" {
			continue
		}
		_ = filepath.WalkDir(groups[controller], func(dir string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // one that has just gone
			}
			for name := range unlimited {
				if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
					held[filepath.Join(dir, name)] = strings.TrimSpace(string(text))
				}
			}
			return nil
		})
	}
	return held
}

// lift takes the limits away as far as the kernel lets it: an idle group, for one, keeps its weight.
func lift(held Held) {
	for file := range held {
		_ = write(file, unlimited[filepath.Base(file)])
	}
}

// freezer is the file by which the groups' processes are frozen.
type freezer struct {
	dir     string
	version int
}

func freezerOf(groups Groups) (freezer, error) {
	if dir := groups["freezer"]; dir != "" {
		return freezer{dir, 1}, nil
	}
	if dir := groups[""]; dir != "" {
		return freezer{dir, 2}, nil
	}
	return freezer{}, errors.New("there is no control group by which processes can be frozen: the host has neither the freezer of version 1 nor version 2")
}

func (f freezer) set(frozen bool) error {
	file, text := "freezer.state", "THAWED"
	switch {
	case f.version == 1 && frozen:
		text = "FROZEN"
	case f.version == 2 && frozen:
		file, text = "cgroup.freeze", "1"
	case f.version == 2:
		file, text = "cgroup.freeze", "0"
	}
	return write(filepath.Join(f.dir, file), text)
}

func (f freezer) frozen() (bool, error) {
	name, want := "freezer.state", "FROZEN\n"
	if f.version == 2 {
		name, want = "cgroup.events", "frozen 1\n"
	}
	text, err := os.ReadFile(filepath.Join(f.dir, name))
	return strings.Contains(string(text), want), err
}

// standing says which processes have not stopped: those that do not wait in the kernel's freezer.
func (f freezer) standing() string {
	var names []string
	for _, pid := range Processes(f.dir, nil) {
		place, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/wchan")
		if err != nil || strings.Contains(string(place), "refrigerator") || strings.Contains(string(place), "freez") {
			continue
		}
		name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		if err != nil {
			continue
		}
		names = append(names, fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(name))))
	}
	if len(names) == 0 {
		return "its processes do not stop"
	}
	const shown = 3
	more := ""
	if len(names) > shown {
		more = fmt.Sprintf(" and %d others", len(names)-shown)
		names = names[:shown]
	}
	return "process " + strings.Join(names, ", ") + more + " does not stop, as while it waits for a disk or a file server"
}

// Processes are those in a group and in the ones made in it, but for the folders in besides and what is in those.
func Processes(group string, besides map[string]bool) []int {
	var pids []int
	_ = filepath.WalkDir(group, func(dir string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return nil
		case besides[dir]:
			return filepath.SkipDir
		}
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for line := range strings.Lines(string(text)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// stateV1 is THAWED, FREEZING or FROZEN, empty for a group without a state: the root, and one that is not there.
func stateV1(group string) string {
	text, _ := os.ReadFile(filepath.Join(group, "freezer.state"))
	return strings.TrimSpace(string(text))
}

func exists(path string) bool { return unix.Access(path, unix.F_OK) == nil }

// write writes to a file of a control group, which is never made.
func write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
