package orchestrator

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// Each file in testdata describes a service, nodes and tasks line by line, then after "---" what is to be done. A line is
// a word, a name, and settings KEY=VALUE; ages are in seconds before now.
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			doc, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			given, want, _ := strings.Cut(string(doc), "---\n")
			svc, tasks, w := parse(t, given)
			var p plan
			if svc != nil {
				p = planService(svc, tasks, w)
			} else {
				p = planRemoval(tasks, w)
			}
			if got := tell(p, svc); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func tell(p plan, svc *cloud.Service) string {
	var b strings.Builder
	if p.service != nil {
		c := *svc
		p.service(&c)
		fmt.Fprintf(&b, "service v%d image %s: %s, %s\n", c.SpecVersion, c.Spec.Task.Container.Image, c.Update.State, c.Update.Message)
	}
	for _, d := range p.desire {
		fmt.Fprintf(&b, "desire %s %s\n", d.task, d.state)
	}
	for _, o := range p.orphan {
		fmt.Fprintf(&b, "orphan %s\n", o)
	}
	for _, r := range p.remove {
		fmt.Fprintf(&b, "forget %s\n", r.ID)
	}
	for _, c := range p.create {
		where := strconv.Itoa(c.Slot)
		if c.Slot == 0 {
			where = c.NodeID
		}
		fmt.Fprintf(&b, "create in %s v%d, %s", where, c.SpecVersion, c.Desired)
		if !c.StartAfter.IsZero() {
			fmt.Fprintf(&b, " after %s", c.StartAfter.Sub(now))
		}
		if len(c.Restarts) > 0 {
			fmt.Fprintf(&b, ", restarts %d", len(c.Restarts))
		}
		b.WriteString("\n")
	}
	if !p.wake.IsZero() {
		fmt.Fprintf(&b, "wake in %s\n", p.wake.Sub(now))
	}
	return b.String()
}

func parse(t *testing.T, doc string) (svc *cloud.Service, tasks []*cloud.Task, w world) {
	w = world{now: now, nodes: map[string]*cloud.Node{}, history: 5}
	for line := range strings.Lines(doc) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		set := map[string]string{}
		for _, kv := range f[2:] {
			k, v, _ := strings.Cut(kv, "=")
			set[k] = v
		}
		num := func(key string) int { n, _ := strconv.Atoi(set[key]); return n }
		ago := func(key string) time.Time {
			s, _ := strconv.ParseFloat(set[key], 64)
			return now.Add(-time.Duration(s * float64(time.Second)))
		}
		switch f[0] {
		case "history":
			w.history, _ = strconv.Atoi(f[1])
		case "node":
			n := &cloud.Node{Spec: cloud.NodeSpec{Role: cloud.RoleWorker, Availability: cloud.AvailabilityActive}, Status: cloud.NodeStatus{State: cloud.NodeReady}}
			n.ID, n.UpdatedAt = f[1], now
			if v := set["state"]; v != "" {
				n.Status.State = cloud.NodeState(v)
			}
			if v := set["avail"]; v != "" {
				n.Spec.Availability = cloud.Availability(v)
			}
			if set["age"] != "" {
				n.UpdatedAt = ago("age")
			}
			w.nodes[n.ID] = n
		case "service":
			svc = &cloud.Service{SpecVersion: uint64(max(1, num("v")))}
			svc.ID, svc.Spec.Name = f[1], f[1]
			svc.Spec.Mode = cloud.ServiceMode{Replicas: uint64(num("replicas")), Global: set["global"] == "yes"}
			if set["job"] != "" {
				svc.Spec.Mode.Job, svc.Spec.Mode.MaxConcurrent = true, uint64(num("concurrent"))
				svc.Job = &cloud.JobStatus{Iteration: uint64(num("job"))}
			}
			svc.Spec.Task.Container.Image = "img" + strconv.Itoa(int(svc.SpecVersion))
			svc.Spec.Update = cloud.UpdateConfig{Parallelism: uint64(num("parallel")), Order: cloud.UpdateOrder(set["order"]),
				FailureAction: cloud.FailureAction(set["onfail"]), Delay: time.Duration(num("delay")) * time.Second}
			svc.Spec.Update.MaxFailureRatio, _ = strconv.ParseFloat(set["ratio"], 64)
			svc.Spec.Rollback = svc.Spec.Update
			svc.Spec.Task.Restart = cloud.RestartPolicy{Condition: cloud.RestartCondition(set["restart"]), MaxAttempts: uint64(num("attempts")),
				Window: time.Duration(num("window")) * time.Second}
			if set["constraint"] != "" {
				svc.Spec.Task.Placement.Constraints = []string{set["constraint"]}
			}
			if set["update"] != "" {
				svc.Update = &cloud.UpdateStatus{State: cloud.UpdateState(set["update"]), StartedAt: ago("began")}
			}
			prev := svc.Spec
			prev.Task.Container.Image = "img" + strconv.Itoa(int(svc.SpecVersion)-1)
			svc.PreviousSpec = &prev
		case "task":
			task := &cloud.Task{Desired: cloud.TaskRunning, Slot: num("slot"), NodeID: set["on"], SpecVersion: uint64(max(1, num("v")))}
			task.ID, task.CreatedAt, task.Born = f[1], ago("age"), uint64(num("born"))
			task.Spec.Container.Image = "img" + strconv.Itoa(int(task.SpecVersion))
			if set["constraint"] != "" {
				task.Spec.Placement.Constraints = []string{set["constraint"]}
			}
			for s := cloud.TaskNew; s <= cloud.TaskOrphaned; s++ {
				if s.String() == set["is"] {
					task.Status.State = s
				}
				if s.String() == set["want"] {
					task.Desired = s
				}
			}
			task.Status.Timestamp = ago("since")
			if set["ran"] != "" {
				task.Status.RunningAt = ago("ran")
			}
			if set["job"] != "" {
				task.Iteration = new(uint64(num("job")))
			}
			if set["after"] != "" {
				task.StartAfter = ago("after")
			}
			for _, r := range strings.FieldsFunc(set["restarts"], func(r rune) bool { return r == ',' }) {
				s, _ := strconv.Atoi(r)
				task.Restarts = append(task.Restarts, now.Add(-time.Duration(s)*time.Second))
			}
			tasks = append(tasks, task)
		default:
			t.Fatalf("line %q", line)
		}
	}
	slices.SortFunc(tasks, func(a, b *cloud.Task) int { return strings.Compare(a.ID, b.ID) })
	return svc, tasks, w
}
