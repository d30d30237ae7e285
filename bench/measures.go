package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

const (
	sleeping = 20 // containers whose memory is measured
	replicas = 60
)

func measures() []measure {
	return []measure{
		{name: "run --rm on bridge", unit: "ms", goal: "≤ 0.20", hosts: 1, sample: runOne},
		{name: "ten run --rm at once", unit: "ms", goal: "≤ 0.20", hosts: 1, sample: runTen},
		{name: "create, start and exit through the API", unit: "ms", goal: "≤ 35 ms", hosts: 1, sample: runAPI},
		{name: "last 20 of 200 starts, as a share of the first 20's rate (more is better)", unit: "", goal: "≥ 0.80", hosts: 1, fresh: true, samples: 1, higher: true, sample: startCrowd},
		{name: "memory added by each of 200 sleeping containers", unit: "MB", goal: "≤ 1 MB", hosts: 1, fresh: true, samples: 1, sample: crowdMemory},
		{name: "daemon ready on an empty host", unit: "ms", goal: "< 500 ms", hosts: 1, fresh: true, samples: 5, sample: ready},
		{name: "idle memory of all own processes", unit: "MB", goal: "≤ 0.60", hosts: 1, fresh: true, samples: 3, sample: idle},
		{name: "idle CPU of all own processes, of a core", unit: "%", goal: "≤ 0.5 %", hosts: 1, fresh: true, samples: 3, sample: idleCPU},
		{name: "memory added by a sleeping container", unit: "MB", goal: "≤ 0.20", hosts: 1, fresh: true, samples: 3, sample: perContainer},
		{name: "swarm init", unit: "ms", goal: "", hosts: 1, fresh: true, samples: 5, sample: swarmInit},
		{name: "swarm join of a worker", unit: "ms", goal: "", hosts: 2, fresh: true, samples: 5, sample: swarmJoin},
		{name: "0 to 60 replicas on three hosts, each having answered", unit: "ms", goal: "< 1", hosts: 3, cluster: true, samples: 3, sample: scaleUp},
		{name: "recovery of a lost host's replicas", unit: "ms", goal: "≤ 5000 ms", hosts: 3, fresh: true, samples: 3, sample: recovery},
		{name: "load of a 500 MB image", unit: "ms", goal: "≤ 0.67", hosts: 1, samples: 5, sample: loadBig},
		{name: "pull of a 500 MB image", unit: "ms", goal: "≤ 0.67", hosts: 1, samples: 5, sample: pullBig},
		{name: "exec through the API", unit: "ms", goal: "≤ 0.3", hosts: 1, sample: execAPI},
		{name: "exec through the command", unit: "ms", goal: "≤ 0.3", hosts: 1, sample: execOne},
		{name: "logs of 1 GB through the API", unit: "ms", goal: "≤ 0.5", hosts: 1, samples: 3, sample: logsAPI},
		{name: "logs of 1 GB through the command", unit: "ms", goal: "", hosts: 1, samples: 3, sample: logsCommand},
		{name: "cp of a 512 MB file into a container", unit: "ms", goal: "≤ 0.67", hosts: 1, samples: 5, sample: cpFileIn},
		{name: "cp of a 512 MB file out of a container", unit: "ms", goal: "≤ 0.67", hosts: 1, samples: 5, sample: cpFileOut},
		{name: "cp of 10,000 files into a container through the API", unit: "ms", goal: "≤ 0.67", hosts: 1, disk: true, samples: 5, sample: putTree},
		{name: "cp of 10,000 files into a container through the command", unit: "ms", goal: "≤ 0.67", hosts: 1, disk: true, samples: 5, sample: cpTreeIn},
		{name: "cp of 10,000 files out of a container through the API", unit: "ms", goal: "≤ 0.67", hosts: 1, disk: true, samples: 5, sample: getTree},
		{name: "cp of 10,000 files out of a container through the command", unit: "ms", goal: "≤ 0.67", hosts: 1, disk: true, samples: 5, sample: cpTreeOut},
		{name: "overlay TCP as a share of host to host (more is better)", unit: "", goal: "≥ 0.85 of host to host", hosts: 2, cluster: true, samples: 5, higher: true, sample: overlayShare},
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func timed(f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return ms(time.Since(began)), err
}

// repeated is the median of a few times in a row, without the first ones, which meet what the other engine still does
// behind its answer.
func repeated(f func() error) (float64, error) {
	var values []float64
	for i := range 10 {
		v, err := timed(f)
		if err != nil {
			return 0, err
		}
		if i >= 3 {
			values = append(values, v)
		}
	}
	return median(values), nil
}

func runOne(ctx context.Context, l *lab) (float64, error) {
	return timed(func() error {
		_, err := l.first().Docker(ctx, "run", "--rm", image, "true")
		return err
	})
}

func runTen(ctx context.Context, l *lab) (float64, error) {
	return timed(func() error {
		errs := make(chan error, 10)
		for range 10 {
			go func() {
				_, err := l.first().Docker(ctx, "run", "--rm", image, "true")
				errs <- err
			}()
		}
		var first error
		for range 10 {
			if err := <-errs; err != nil && first == nil {
				first = err
			}
		}
		return first
	})
}

func ready(ctx context.Context, l *lab) (float64, error) {
	return timed(func() error { return l.first().Start(ctx) })
}

// settle lets a daemon finish what it does after its start.
func settle(ctx context.Context) error {
	select {
	case <-time.After(3 * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func idle(ctx context.Context, l *lab) (float64, error) {
	if err := l.first().Start(ctx); err != nil {
		return 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	return float64(testhost.PSS(l.first().Processes())) / 1e6, nil
}

// idleCPU is the share of one core that a daemon takes that has nothing to do, in percent.
func idleCPU(ctx context.Context, l *lab) (float64, error) {
	if err := l.first().Start(ctx); err != nil {
		return 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	pids := l.first().Processes()
	before, began := cpuOf(pids), time.Now()
	select {
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return 100 * float64(cpuOf(pids)-before) / float64(time.Since(began)), nil
}

func perContainer(ctx context.Context, l *lab) (float64, error) {
	if err := l.up(ctx); err != nil {
		return 0, err
	}
	h := l.first()
	if _, err := h.Docker(ctx, "run", "--rm", image, "true"); err != nil { // what the first one costs is no slope
		return 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	before := testhost.PSS(h.Processes())
	for range sleeping {
		if _, err := h.Docker(ctx, "run", "-d", image, "sleep"); err != nil {
			return 0, err
		}
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	return float64(testhost.PSS(h.Processes())-before) / sleeping / 1e6, nil
}

func swarmInit(ctx context.Context, l *lab) (float64, error) {
	if err := l.StartAll(ctx); err != nil {
		return 0, err
	}
	return timed(func() error {
		_, err := l.first().Docker(ctx, "swarm", "init", "--advertise-addr", l.first().Addr.String())
		return err
	})
}

func swarmJoin(ctx context.Context, l *lab) (float64, error) {
	if _, err := swarmInit(ctx, l); err != nil {
		return 0, err
	}
	token, err := l.first().Docker(ctx, "swarm", "join-token", "-q", "worker")
	if err != nil {
		return 0, err
	}
	return timed(func() error {
		_, err := l.Hosts[1].Docker(ctx, "swarm", "join", "--token", token, "--advertise-addr", l.Hosts[1].Addr.String(), l.first().Addr.String()+":2377")
		return err
	})
}

// endpoint is how tasks are found: Docker's virtual IPs need IPVS, which a kernel may lack, so its tasks are found by
// DNS round robin.
func (l *lab) endpoint() string {
	if l.engine.name == "docker" {
		return "dnsrr"
	}
	return "vip"
}

func scaleUp(ctx context.Context, l *lab) (float64, error) {
	h := l.first()
	network, web, prober := fmt.Sprintf("net%d", l.round), fmt.Sprintf("web%d", l.round), fmt.Sprintf("prober%d", l.round)
	if _, err := h.Docker(ctx, "network", "create", "-d", "overlay", "--attachable", network); err != nil {
		return 0, err
	}
	if _, err := h.Docker(ctx, "service", "create", "-d", "--no-resolve-image", "--name", web, "--network", network, "--replicas", "0",
		"--endpoint-mode", l.endpoint(), image, "serve"); err != nil {
		return 0, err
	}
	var answered string
	var failed error
	var count sync.WaitGroup
	if _, err := h.Docker(ctx, "run", "-d", "--name", prober, "--network", network, image, "sleep"); err != nil {
		return 0, err
	}
	count.Go(func() {
		answered, failed = h.Docker(ctx, "exec", prober, "/tool", "count", web, strconv.Itoa(replicas))
	})
	began := time.Now()
	if _, err := h.Docker(ctx, "service", "scale", "-d", fmt.Sprintf("%s=%d", web, replicas)); err != nil {
		return 0, err
	}
	count.Wait()
	if failed != nil {
		return 0, failed
	}
	at, err := strconv.ParseInt(strings.TrimSpace(answered), 10, 64)
	if err != nil {
		return 0, err
	}
	// What this sample made is gone before the next one starts.
	_, _ = h.Docker(ctx, "rm", "-f", prober)
	_, _ = h.Docker(ctx, "service", "rm", web)
	err = testhost.WaitFor(ctx, 2*time.Minute, "the replicas gone", func(ctx context.Context) error {
		for _, h := range l.Hosts {
			if out, err := h.Docker(ctx, "ps", "-q"); err != nil || out != "" {
				return fmt.Errorf("%s still runs %d containers: %w", h.Name, strings.Count(out, "\n")+1, err)
			}
		}
		return nil
	})
	return ms(time.Unix(0, at).Sub(began)), err
}

func recovery(ctx context.Context, l *lab) (float64, error) {
	if err := l.up(ctx); err != nil {
		return 0, err
	}
	if err := l.Swarm(ctx, 1); err != nil {
		return 0, err
	}
	h, lost := l.first(), l.Hosts[2]
	if _, err := h.Docker(ctx, "network", "create", "-d", "overlay", "--attachable", "net"); err != nil {
		return 0, err
	}
	if _, err := h.Docker(ctx, "service", "create", "-d", "--no-resolve-image", "--name", "web", "--network", "net", "--replicas", "6",
		"--endpoint-mode", l.endpoint(), image, "serve"); err != nil {
		return 0, err
	}
	if _, err := h.Docker(ctx, "run", "-d", "--name", "prober", "--network", "net", image, "sleep"); err != nil {
		return 0, err
	}
	six := func() (string, error) { return h.Docker(ctx, "exec", "prober", "/tool", "count", "web", "6") }
	if _, err := six(); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := lost.Lose(ctx); err != nil {
		return 0, err
	}
	// Those on the lost host answer no more: six different answers are six replicas that live.
	answered, err := six()
	if err != nil {
		return 0, err
	}
	at, err := strconv.ParseInt(strings.TrimSpace(answered), 10, 64)
	return ms(time.Unix(0, at).Sub(began)), err
}

// A share is that of several short transfers, direct and through the overlay in turn: what else the machine does then
// slows both alike.
const (
	transfer  = "1s"
	transfers = 3
)

func overlayShare(ctx context.Context, l *lab) (float64, error) {
	a, b := l.Hosts[0], l.Hosts[1]
	if l.round == 0 {
		if _, err := a.Docker(ctx, "network", "create", "-d", "overlay", "--attachable", "ov"); err != nil {
			return 0, err
		}
		if _, err := a.Docker(ctx, "run", "-d", "--network", "ov", "--name", "receiver", image, "receive", ":5001"); err != nil {
			return 0, err
		}
		if _, err := b.Docker(ctx, "run", "-d", "--network", "ov", "--name", "sender", image, "sleep"); err != nil {
			return 0, err
		}
	}
	var direct, overlay float64
	for range transfers {
		rate, err := l.directTransfer(ctx, a, b)
		if err != nil {
			return 0, err
		}
		direct += rate
		out, err := b.Docker(ctx, "exec", "sender", "/tool", "send", "receiver:5001", transfer)
		if err != nil {
			return 0, err
		}
		if rate, err = strconv.ParseFloat(strings.TrimSpace(out), 64); err != nil {
			return 0, err
		}
		overlay += rate
	}
	return overlay / direct, nil
}

// directTransfer is the same transfer between the hosts' own addresses.
func (l *lab) directTransfer(ctx context.Context, a, b *testhost.Host) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	receiver := exec.CommandContext(ctx, "nsenter", "--net="+a.NetNS, l.tool, "receive", a.Addr.String()+":5001")
	if err := receiver.Start(); err != nil {
		return 0, err
	}
	defer func() { cancel(); _ = receiver.Wait() }()
	out, err := exec.CommandContext(ctx, "nsenter", "--net="+b.NetNS, l.tool, "send", a.Addr.String()+":5001", transfer).Output()
	if err != nil {
		return 0, err
	}
	var v float64
	err = json.Unmarshal(out, &v)
	return v, err
}
