package server

import (
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

// A search for strays waits for what is being started and keeps new starts waiting, but not for one that never comes to its end.
func TestSearchAndStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st starts
		st.begin()
		found := make(chan struct{})
		go st.alone(func() { close(found) })
		synctest.Wait()
		began := time.Now()
		st.begin()
		if waited := time.Since(began); waited != patience {
			t.Errorf("a start waited for %v beside one that is held up, want %v", waited, patience)
		}
		st.done()
		st.done()
		<-found
		st.begin()
		st.done()

		held := make(chan struct{})
		go st.alone(func() { <-held })
		synctest.Wait()
		began = time.Now()
		time.AfterFunc(time.Hour, func() { close(held) })
		st.begin()
		if waited := time.Since(began); waited != time.Hour {
			t.Errorf("a start waited for %v, want until the search is over", waited)
		}
		st.done()
	})
}

// A process whose end was noted by the program before, and that it did not come to reap, is reaped by the next one.
func TestAnEndThatWasNotedIsReaped(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	st, err := readStat(pid)
	if err != nil || st.state != 'Z' {
		t.Fatalf("%+v %v, want a zombie", st, err)
	}
	s := &Server{log: slog.New(slog.DiscardHandler)}
	rec := record{ID: "c", ExecID: "e", Ticks: st.ticks, Status: keeper.Status{ID: "c", ExecID: "e", State: keeper.Running, PID: pid}}
	rec.Final = &keeper.Status{ID: "c", ExecID: "e", State: keeper.Exited}
	p := s.newProc(t.TempDir(), rec)
	c := &container{proc: p, execs: map[string]*proc{"e": p}}
	s.resumeProc(c, p, newHanded())
	<-p.gone
	if st, err := readStat(pid); !os.IsNotExist(err) {
		t.Errorf("it is still there: %+v %v", st, err)
	}
}
