package control_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/state"
)

func TestServiceRunsSpreadAndIsKnownEverywhere(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 6, "net"))
		s.serve("web", 6)
		perNode := map[string]int{}
		for _, task := range s.serving("web") {
			perNode[task.NodeID]++
			if len(task.Networks) != 1 || len(task.Networks[0].Addrs) != 1 {
				t.Errorf("task %s has networks %v", task.ID, task.Networks)
			}
		}
		for name := range s.hosts {
			if perNode[name] != 2 {
				t.Errorf("tasks per node: %v", perNode)
			}
		}
		s.eventually("all hosts send requests to all six", func() bool {
			for _, h := range s.hosts {
				if len(h.backends("web")) != 6 {
					return false
				}
			}
			return true
		})
		svc := s.service("web")
		if len(svc.Endpoint.VIPs) != 1 || !svc.Endpoint.VIPs[0].Addrs[0].IsValid() {
			t.Errorf("virtual addresses: %v", svc.Endpoint.VIPs)
		}
	})
}

func TestScaleDownFailsNoRequest(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 6, "net"))
		s.serve("web", 6)
		s.watchStops()
		for _, h := range s.hosts {
			h.mu.Lock()
			h.applyDelay = 200 * time.Millisecond // kernels take their time
			h.mu.Unlock()
		}
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Mode.Replicas = 2 })
		s.eventually("two are left and the others are forgotten", func() bool {
			return len(s.tasks("web")) == 2 && len(s.serving("web")) == 2
		})
		s.eventually("no container is left over", func() bool {
			n := 0
			for _, h := range s.hosts {
				h.mu.Lock()
				n += len(h.containers)
				h.mu.Unlock()
			}
			return n == 2
		})
	})
}

func TestPlannedStopWaitsForAHungHostOnlySoLong(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 3, "net"))
		s.serve("web", 3)
		s.hosts["node3"].mu.Lock()
		s.hosts["node3"].applyDelay = time.Hour
		s.hosts["node3"].mu.Unlock()
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Mode.Replicas = 1 })
		took := s.within(6*time.Second, "one is left", func() bool { return len(s.tasks("web")) == 1 })
		if took < 2*time.Second {
			t.Errorf("stopped after %s: the hung host was not waited for", took)
		}
		s.hosts["node3"].mu.Lock()
		s.hosts["node3"].applyDelay = 0
		s.hosts["node3"].mu.Unlock()
	})
}

func TestLostHostIsReplacedWithinFiveSeconds(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 6, "net"))
		s.serve("web", 6)
		lost := s.hosts["node3"]
		lost.setCut(true)
		took := s.within(5*time.Second, "six serve on the hosts that are left, and those know", func() bool {
			for _, name := range []string{"node1", "node2"} {
				if len(s.hosts[name].backends("web")) != 6 {
					return false
				}
				for _, id := range s.hosts[name].backends("web") {
					if slices.Contains(lost.runningTasks(), id) {
						return false
					}
				}
			}
			return true
		})
		t.Logf("served elsewhere after %s", took)
		if got := len(lost.backends("web")); got != 6 {
			t.Errorf("the host that was cut off forgot members: it has %d", got)
		}
		lost.setCut(false)
		s.eventually("the host is back and its old tasks are stopped", func() bool {
			return len(lost.runningTasks()) == 0 && len(lost.backends("web")) == 6 && len(s.serving("web")) == 6
		})
	})
}

func TestNoFalseAlarmWhenALinkBlinks(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 3, "net"))
		s.serve("web", 3)
		before := s.tasks("web")
		for range 5 {
			s.hosts["node2"].setCut(true)
			s.pass(2200 * time.Millisecond)
			s.hosts["node2"].setCut(false)
			s.pass(3 * time.Second)
		}
		if after := s.tasks("web"); len(after) != len(before) {
			t.Errorf("tasks were replaced:\n%s", s.describe())
		}
	})
}

func TestDaemonRestartChangesNothing(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 4, "net"))
		s.serve("web", 4)
		before := s.tasks("web")
		h := s.hosts["node2"]
		running := h.runningTasks()
		h.crash()
		s.pass(time.Second)
		h.boot()
		s.pass(20 * time.Second)
		if after := s.tasks("web"); len(after) != len(before) || !slices.Equal(running, h.runningTasks()) {
			t.Errorf("before %v, after %v:\n%s", running, h.runningTasks(), s.describe())
		}
		for _, task := range s.serving("web") {
			if c := s.hosts[task.NodeID].containerOf(task.ID); c.runs != 1 {
				t.Errorf("the container of %s was started %d times", task.ID, c.runs)
			}
		}
	})
}

func TestTaskThatDiesIsOutOfEveryTableAndComesBack(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 3, "net"))
		s.serve("web", 3)
		s.eventually("everybody knows", func() bool { return len(s.hosts["node1"].backends("web")) == 3 })
		victim := s.serving("web")[0]
		s.hosts[victim.NodeID].kill(victim.ID, 9)
		s.within(100*time.Millisecond, "nobody sends it requests", func() bool {
			for _, h := range s.hosts {
				if slices.Contains(h.backends("web"), victim.ID) {
					return false
				}
			}
			return true
		})
		s.eventually("three serve again", s.settled("web", 3))
		for _, task := range s.tasks("web") {
			if task.ID == victim.ID && (task.Status.State != cloud.TaskFailed || task.Status.ExitCode != 9 || task.Status.Err != "task: non-zero exit (9)") {
				t.Errorf("the dead task's status: %+v", task.Status)
			}
		}
	})
}

func TestRollingUpdateOneByOne(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 4, "net"))
		s.serve("web", 4)
		s.watchStops()
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "web:2" })
		least := 4
		s.eventually("the update is completed", func() bool {
			least = min(least, len(s.serving("web")))
			u := s.service("web").Update
			return u != nil && u.State == cloud.UpdateCompleted
		})
		if least < 3 {
			t.Errorf("only %d tasks served at some time, with a parallelism of 1", least)
		}
		for _, task := range s.serving("web") {
			if task.Spec.Container.Image != "web:2" {
				t.Errorf("task %s has image %s", task.ID, task.Spec.Container.Image)
			}
		}
	})
}

func TestStartFirstUpdateKeepsAllServing(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		s.network("net")
		spec := webSpec("web", "web:1", 2, "net")
		spec.Update.Order = cloud.StartFirst
		s.create(spec)
		s.serve("web", 2)
		s.watchStops()
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "slow:1" })
		least := 2
		s.eventually("the update is completed", func() bool {
			least = min(least, len(s.serving("web")))
			u := s.service("web").Update
			return u != nil && u.State == cloud.UpdateCompleted
		})
		if least < 2 {
			t.Errorf("only %d of two tasks served at some time", least)
		}
	})
}

func TestFailingUpdateRollsBack(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		spec := webSpec("web", "web:1", 4, "net")
		spec.Update.FailureAction = cloud.FailureRollback
		s.create(spec)
		s.serve("web", 4)
		s.watchStops()
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "crash:1" })
		s.eventually("it is rolled back", func() bool {
			u := s.service("web").Update
			return u != nil && u.State == cloud.UpdateRollbackCompleted
		})
		s.eventually("four serve", s.settled("web", 4))
		for _, task := range s.serving("web") {
			if task.Spec.Container.Image != "web:1" {
				t.Errorf("task %s has image %s", task.ID, task.Spec.Container.Image)
			}
		}
	})
}

func TestFailingUpdatePausesAndAFixedOneGoesThrough(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		s.create(webSpec("web", "web:1", 4))
		s.eventually("four tasks serve", s.settled("web", 4))
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "gone:9" })
		s.eventually("the update is paused", func() bool {
			u := s.service("web").Update
			return u != nil && u.State == cloud.UpdatePaused
		})
		if n := len(s.serving("web")); n != 3 {
			t.Errorf("%d tasks serve, want the three that were not touched", n)
		}
		rejected := slices.ContainsFunc(s.tasks("web"), func(task *cloud.Task) bool {
			return task.Status.State == cloud.TaskRejected && len(task.Status.Err) > 21 && task.Status.Err[:21] == "No such image: gone:9"
		})
		if !rejected {
			t.Errorf("no task says that its image is missing:\n%s", s.describe())
		}
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "web:2" })
		s.eventually("the fixed one is completed", func() bool {
			u := s.service("web").Update
			return u != nil && u.State == cloud.UpdateCompleted && len(s.serving("web")) == 4
		})
	})
}

func TestDrainMovesTasksAwayAndFailsNoRequest(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 6, "net"))
		s.serve("web", 6)
		s.watchStops()
		s.setAvailability("node2", cloud.AvailabilityDrain)
		least := 6
		s.eventually("six serve on the others", func() bool {
			serving := s.serving("web")
			least = min(least, len(serving))
			return len(serving) == 6 && len(s.hosts["node2"].runningTasks()) == 0
		})
		if least < 6 {
			t.Errorf("only %d of six tasks served while draining", least)
		}
		s.setAvailability("node2", cloud.AvailabilityActive)
		s.pass(5 * time.Second)
		if len(s.serving("web")) != 6 {
			t.Errorf("after the drain:\n%s", s.describe())
		}
	})
}

func TestNewLeaderGoesOnInTheMiddleOfAnUpdate(t *testing.T) {
	run(t, 3, 3, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 4, "net"))
		s.serve("web", 4)
		s.watchStops()
		s.update("web", func(sp *cloud.ServiceSpec) { sp.Task.Container.Image = "web:2" })
		updated := func() (n int) {
			for _, task := range s.serving("web") {
				if task.Spec.Container.Image == "web:2" {
					n++
				}
			}
			return n
		}
		s.eventually("two are updated", func() bool { return updated() == 2 })
		s.elect(-1)
		s.pass(time.Second)
		s.elect(1)
		s.eventually("the update is completed", func() bool {
			u := s.service("web").Update
			return u != nil && u.State == cloud.UpdateCompleted && updated() == 4
		})
		if n := len(s.tasks("web")); n != 8 {
			t.Errorf("%d tasks, want four old and four new:\n%s", n, s.describe())
		}
	})
}

func TestLossOfTheLeadersHost(t *testing.T) {
	run(t, 3, 3, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 6, "net"))
		s.serve("web", 6)
		s.hosts["node1"].setCut(true)
		lost := s.hosts["node1"].runningTasks()
		start := time.Now()
		s.pass(1500 * time.Millisecond) // the managers' election
		s.elect(1)
		s.eventually("six serve on the hosts that are left, and those know", func() bool {
			for _, name := range []string{"node2", "node3"} {
				got := s.hosts[name].backends("web")
				if len(got) != 6 || slices.ContainsFunc(got, func(id string) bool { return slices.Contains(lost, id) }) {
					return false
				}
			}
			return true
		})
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
		s.hosts["node1"].setCut(false)
		s.eventually("it is back", func() bool { return len(s.hosts["node1"].backends("web")) == 6 })
	})
}

func TestWithoutManagersTasksGoOnAndRestartWhereTheyAre(t *testing.T) {
	run(t, 2, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 2, "net"))
		s.serve("web", 2)
		h := s.hosts["node2"]
		task := h.runningTasks()[0]
		s.elect(-1)
		s.pass(10 * time.Second)
		h.kill(task, 1)
		s.within(100*time.Millisecond, "its own host does not send it requests", func() bool { return !slices.Contains(h.backends("web"), task) })
		s.within(5*time.Second, "it runs again", func() bool {
			return slices.Contains(h.runningTasks(), task) && slices.Contains(h.backends("web"), task)
		})
		h.crash()
		h.boot()
		s.pass(10 * time.Second)
		if !slices.Contains(h.runningTasks(), task) || !slices.Contains(h.backends("web"), task) {
			t.Error("a daemon that started without managers did not keep its task")
		}
		s.elect(0)
		s.pass(10 * time.Second)
		if len(s.serving("web")) != 2 || len(s.tasks("web")) != 2 {
			t.Errorf("with managers again:\n%s", s.describe())
		}
	})
}

func TestGlobalServiceFollowsNodes(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		spec := webSpec("agent", "web:1", 0)
		spec.Mode.Global = true
		spec.Task.Placement.Constraints = []string{"node.labels.disk!=tape"}
		s.create(spec)
		s.eventually("one on each", s.settled("agent", 3))
		s.setAvailability("node3", cloud.AvailabilityDrain)
		s.eventually("none on the drained one", func() bool { return len(s.hosts["node3"].runningTasks()) == 0 && len(s.serving("agent")) == 2 })
		s.setAvailability("node3", cloud.AvailabilityActive)
		s.eventually("one on each again", s.settled("agent", 3))
		n, err := s.api.GetNode(t.Context(), "node2")
		must(t, err)
		spec2 := n.Spec
		spec2.Labels = map[string]string{"disk": "tape"}
		must(t, s.api.UpdateNode(t.Context(), n.ID, n.Version, spec2))
		s.eventually("none where the constraint fails", func() bool { return len(s.hosts["node2"].runningTasks()) == 0 && len(s.serving("agent")) == 2 })
	})
}

func TestRestartPolicyEnds(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		spec := webSpec("job", "crash:1", 1)
		spec.Task.Restart.MaxAttempts = 2
		s.create(spec)
		s.pass(30 * time.Second)
		tasks := s.tasks("job")
		if len(tasks) != 3 || slices.ContainsFunc(tasks, func(task *cloud.Task) bool { return task.Status.State != cloud.TaskFailed }) {
			t.Errorf("want the first and two more, all failed:\n%s", s.describe())
		}
		once := webSpec("once", "once:1", 1)
		once.Task.Restart.Condition = cloud.RestartOnFailure
		s.create(once)
		s.pass(30 * time.Second)
		if tasks := s.tasks("once"); len(tasks) != 1 || tasks[0].Status.State != cloud.TaskComplete {
			t.Errorf("want one that completed:\n%s", s.describe())
		}
	})
}

func TestUnhealthyTaskNeverServes(t *testing.T) {
	run(t, 1, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "sick:1", 1, "net"))
		for range 100 {
			s.pass(100 * time.Millisecond)
			if len(s.hosts["node1"].backends("web")) > 0 {
				t.Fatal("a task that never was healthy was sent requests")
			}
		}
		if !slices.ContainsFunc(s.tasks("web"), func(task *cloud.Task) bool { return task.Status.Err == "task: unhealthy container" }) {
			t.Errorf("no task says why:\n%s", s.describe())
		}
	})
}

// A node may come back at the very moment at which it is written down as lost.
func TestNodeThatComesBackWhileItIsDeclaredDownIsReady(t *testing.T) {
	for _, back := range []time.Duration{2900, 3000, 3050, 3100, 3105, 3110, 3150, 3200} {
		run(t, 2, 1, func(t *testing.T, s *sim) {
			s.hosts["node2"].setCut(true)
			s.pass(back * time.Millisecond)
			s.hosts["node2"].setCut(false)
			s.pass(10 * time.Second)
			if n, err := s.api.GetNode(t.Context(), "node2"); err != nil || n.Status.State != cloud.NodeReady {
				t.Errorf("back after %d ms: %+v, %v", back, n.Status, err)
			}
		})
	}
}

func TestNodeThatLeavesIsReplacedAtOnce(t *testing.T) {
	run(t, 3, 1, func(t *testing.T, s *sim) {
		s.network("net")
		s.create(webSpec("web", "web:1", 3, "net"))
		s.serve("web", 3)
		must(t, s.store.Update(t.Context(), func(tx state.WriteTx) error {
			n := state.Clone(state.Get[*cloud.Node](tx, "node3"))
			n.Status.State, n.Status.Message = cloud.NodeDown, "node has left the cluster"
			return tx.Put(n)
		}))
		s.hosts["node3"].setCut(true)
		s.within(time.Second, "three serve on the others", func() bool {
			return len(s.hosts["node1"].backends("web")) == 3 && len(s.serving("web")) == 3 &&
				!slices.ContainsFunc(s.serving("web"), func(task *cloud.Task) bool { return task.NodeID == "node3" })
		})
	})
}
