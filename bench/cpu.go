package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// ticks is the kernel's unit of CPU time: 10 ms on every architecture that Linux has today.
const ticks = 10 * time.Millisecond

// cpuOf is the CPU time that processes and the children they have waited for have taken so far.
func cpuOf(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		// The second field is a name in parentheses, which may hold anything; user, system and the children's are the 14th
		// to 17th.
		_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
		fields := strings.Fields(rest)
		if len(fields) < 15 {
			continue
		}
		for _, f := range fields[11:15] {
			n, _ := strconv.ParseInt(f, 10, 64)
			sum += time.Duration(n) * ticks
		}
	}
	return sum
}
