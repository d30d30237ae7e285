package main

import (
	"os"
	"strconv"
	"syscall"
)

func signalOthers() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != 1 && pid != os.Getpid() {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				return err
			}
		}
	}
	return nil
}
