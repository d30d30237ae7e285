package scheduler

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Each file in testdata describes nodes and tasks line by line, then after "---" what is to be decided. A line is a
// word, a name, and settings KEY=VALUE.
func TestDecide(t *testing.T) {
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
			nodes, tasks := parse(t, given)
			var got strings.Builder
			for _, d := range decide(nodes, tasks, now) {
				if d.node != "" {
					fmt.Fprintf(&got, "%s on %s%s\n", d.task.ID, d.node, strings.Join(append([]string{""}, cloud.GenericEnv(d.generic)...), " "))
				} else {
					fmt.Fprintf(&got, "%s waits: %s\n", d.task.ID, d.reason)
				}
			}
			if got.String() != want {
				t.Errorf("got\n%swant\n%s", got.String(), want)
			}
		})
	}
}

func generic(t *testing.T, terms ...string) []cloud.GenericResource {
	t.Helper()
	all, err := cloud.ParseGenericResources(terms)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func parse(t *testing.T, doc string) (nodes []*cloud.Node, tasks []*cloud.Task) {
	for line := range strings.Lines(doc) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		n := &cloud.Node{Spec: cloud.NodeSpec{Role: cloud.RoleWorker, Availability: cloud.AvailabilityActive, Labels: map[string]string{}},
			Description: cloud.NodeDescription{OS: "linux", Architecture: "x86_64", Resources: cloud.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}},
			Status:      cloud.NodeStatus{State: cloud.NodeReady}}
		task := &cloud.Task{ServiceID: "web", Desired: cloud.TaskRunning}
		task.Status.State = cloud.TaskPending
		n.ID, task.ID = f[1], f[1]
		for _, set := range f[2:] {
			key, value, _ := strings.Cut(set, "=")
			num, _ := strconv.Atoi(value)
			switch key {
			case "cpu":
				n.Description.Resources.NanoCPUs, task.Spec.Reservations.NanoCPUs = int64(num)*1e9, int64(num)*1e9
			case "gib":
				n.Description.Resources.MemoryBytes, task.Spec.Reservations.MemoryBytes = int64(num)<<30, int64(num)<<30
			case "state":
				n.Status.State = cloud.NodeState(value)
			case "avail":
				n.Spec.Availability = cloud.Availability(value)
			case "rack", "zone":
				n.Spec.Labels[key] = value
			case "arch":
				n.Description.Architecture = value
				task.Spec.Placement.Platforms = []cloud.Platform{{OS: "linux", Architecture: value}}
			case "constraint":
				task.Spec.Placement.Constraints = append(task.Spec.Placement.Constraints, value)
			case "spread":
				task.Spec.Placement.SpreadOver = append(task.Spec.Placement.SpreadOver, value)
			case "max":
				task.Spec.Placement.MaxReplicas = uint64(num)
			case "port":
				task.Ports = []cloud.PortConfig{{Protocol: cloud.TCP, Target: 80, Published: uint16(num), Mode: cloud.PublishHost}}
			case "gpu":
				n.Description.Resources.Generic = append(n.Description.Resources.Generic, generic(t, "gpu="+value)...)
				task.Spec.Reservations.Generic = generic(t, "gpu="+value)
			case "has":
				task.Generic = generic(t, strings.Split(value, ",")...)
			case "wanted":
				switch value {
				case "shutdown":
					task.Desired = cloud.TaskShutdown
				case "ready":
					task.Desired = cloud.TaskReady
				}
			case "slot":
				task.Slot = num
			case "service":
				task.ServiceID = value
			case "on":
				task.NodeID = value
			case "is":
				for s := cloud.TaskNew; s <= cloud.TaskOrphaned; s++ {
					if s.String() == value {
						task.Status.State = s
					}
				}
				task.Status.Timestamp = now.Add(-time.Minute)
			case "ago": // seconds; after "is"
				task.Status.Timestamp = now.Add(-time.Duration(num) * time.Second)
			case "says":
				task.Status.Err = strings.ReplaceAll(value, "_", " ")
			default:
				t.Fatalf("setting %q", set)
			}
		}
		switch f[0] {
		case "node":
			nodes = append(nodes, n)
		case "task":
			tasks = append(tasks, task)
		default:
			t.Fatalf("line %q", line)
		}
	}
	return nodes, tasks
}
