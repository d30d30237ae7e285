package dispatcher

import "github.com/sampan-cloud/sampan/internal/rpc"

// LogPlaces are how far the logs of tasks have been read, so that reading can go on after it broke off, with no line lost and
// none twice. The zero value is that of nothing read. It is not for several goroutines.
type LogPlaces struct{ tasks map[string]*logPlace }

type logPlace struct {
	time  int64 // of the last line, Unix nanoseconds
	lines int   // with that time, as what is written at once has
	again bool  // it is being read once more from that time on
	skip  int   // lines with that time that are still to come again
}

// Take notes a line and tells whether it is new.
func (p *LogPlaces) Take(f *rpc.LogFrame) bool {
	at := p.tasks[f.GetTaskId()]
	if at == nil {
		if p.tasks == nil {
			p.tasks = map[string]*logPlace{}
		}
		at = &logPlace{}
		p.tasks[f.GetTaskId()] = at
	}
	if at.again {
		if f.GetTime() < at.time {
			return false
		}
		if f.GetTime() == at.time && at.skip > 0 {
			at.skip--
			return false
		}
		at.again = false
	}
	if f.GetTime() == at.time {
		at.lines++
	} else {
		at.time, at.lines = f.GetTime(), 1
	}
	return true
}

// Again says that a task's log is read once more, and from when on it has to be; ok is false if nothing of it was read yet.
func (p *LogPlaces) Again(task string) (since int64, ok bool) {
	at := p.tasks[task]
	if at == nil {
		return 0, false
	}
	at.again, at.skip = true, at.lines
	return at.time, true
}

// AllAgain is Again for all tasks; since is the earliest of their times.
func (p *LogPlaces) AllAgain() (since int64, ok bool) {
	for task := range p.tasks {
		if at, _ := p.Again(task); !ok || at < since {
			since, ok = at, true
		}
	}
	return since, ok
}
