package server

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ownCgroup returns the path of the keeper's group. Several daemons on one machine have as many keepers.
func (s *Server) ownCgroup() string {
	parent := s.cfg.CgroupParent
	if !strings.HasPrefix(parent, "/") { // a systemd slice
		parent = "/"
	}
	sum := sha256.Sum256([]byte(s.cfg.ExecRoot))
	return filepath.Join(parent, "sampan-keeper-"+hex.EncodeToString(sum[:4]))
}

// joinOwnCgroup moves the keeper out of the daemon's group, where systemd ends everything when it ends the daemon. It
// does without where it may not.
func (s *Server) joinOwnCgroup() {
	name := s.ownCgroup()
	mounts, err := processTrees("/proc/self/mountinfo")
	if err != nil {
		s.log.Warn("cannot find the cgroup file systems", "err", err)
		return
	}
	for _, mount := range mounts {
		dir := filepath.Join(mount, name)
		for above := filepath.Dir(dir); above != mount; above = filepath.Dir(above) {
			if unix.Access(above, unix.F_OK) != nil {
				s.madeGroups = append(s.madeGroups, above)
			}
		}
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
		}
		if err != nil {
			s.log.Warn("the keeper stays in the daemon's cgroup", "group", dir, "err", err)
		}
	}
}

// leaveOwnCgroup goes back to the root so that nothing of the keeper's group stays, nor of those above it that were made
// for it and that nobody else uses by now.
func (s *Server) leaveOwnCgroup() {
	name := s.ownCgroup()
	mounts, _ := processTrees("/proc/self/mountinfo")
	for _, mount := range mounts {
		err := os.WriteFile(filepath.Join(mount, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
		if err == nil {
			err = ignoreMissing(os.Remove(filepath.Join(mount, name)))
		}
		if err != nil {
			s.log.Warn("the keeper's group stays", "group", filepath.Join(mount, name), "err", err)
		}
	}
	for _, dir := range s.madeGroups {
		_ = os.Remove(dir)
	}
}

// processTrees returns where the hierarchies are mounted by which processes are told apart and ended: version 2's, and
// systemd's own of version 1. Those of version 1's controllers only limit, and no container's limit counts there.
func processTrees(mountinfo string) ([]string, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		if kind[0] == "cgroup2" || kind[0] == "cgroup" && strings.Contains(kind[2], "name=systemd") {
			out = append(out, fields[4])
		}
	}
	return out, lines.Err()
}
