package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/sampan-cloud/sampan/examples/shop/shop"
	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/shopimage"
)

const replicas = 3

// demo is a run of the demonstration.
type demo struct {
	lab      *testhost.Lab
	registry *testhost.Registry
	image    map[string]string // service → image
	lost     *testhost.Host
}

// step runs one step and shows that it is under way, then how it ended and how long it took.
func (d *demo) step(ctx context.Context, what string, do func(context.Context) (string, error)) error {
	began := time.Now()
	done := make(chan struct{})
	var spinner sync.WaitGroup
	if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		spinner.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-tick.C:
					fmt.Printf("\r %c %s  %.1f s", `|/-\`[i%4], what, time.Since(began).Seconds())
				}
			}
		})
	}
	result, err := do(ctx)
	close(done)
	spinner.Wait()
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	fmt.Printf("\r %s %-60s %6.1f s\n", mark, what, time.Since(began).Seconds())
	for line := range strings.Lines(result) {
		fmt.Print("     " + line)
	}
	if result != "" && !strings.HasSuffix(result, "\n") {
		fmt.Println()
	}
	return err
}

func (d *demo) images(ctx context.Context) (string, error) {
	var err error
	if d.registry, err = d.lab.StartRegistry(); err != nil {
		return "", err
	}
	d.image = map[string]string{}
	var size int
	for _, s := range shopimage.Services {
		archive, err := shopimage.Build(ctx, s.Name)
		if err != nil {
			return "", err
		}
		size += len(archive)
		if d.image[s.Name], err = d.registry.Push(ctx, archive, "shop/"+s.Name+":1"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d images, %.0f MB", len(d.image), float64(size)/1e6), nil
}

func (d *demo) start(ctx context.Context) (string, error) {
	if err := d.lab.StartAll(ctx); err != nil {
		return "", err
	}
	var lines []string
	for _, h := range d.lab.Hosts {
		lines = append(lines, fmt.Sprintf("%s  %s", h.Name, h.Addr))
	}
	return strings.Join(lines, "\n"), nil
}

func (d *demo) cluster(ctx context.Context) (string, error) {
	if err := d.lab.Swarm(ctx, 3); err != nil {
		return "", err
	}
	return d.lab.Hosts[0].Docker(ctx, "node", "ls")
}

func (d *demo) network(ctx context.Context) (string, error) {
	_, err := d.lab.Hosts[0].Docker(ctx, "network", "create", "--driver", "overlay", "--attachable", "--subnet", "10.10.0.0/24", "shop")
	return "", err
}

func (d *demo) deploy(ctx context.Context) (string, error) {
	for _, s := range shopimage.Services {
		args := []string{"service", "create", "--detach", "--name", s.Name, "--network", "shop", "--replicas", fmt.Sprint(replicas),
			"--env", "SHOP_NODE={{.Node.Hostname}}", "--env", "SHOP_TASK={{.Task.Name}}",
			"--restart-delay", "500ms", "--no-resolve-image"}
		if s.Published != 0 {
			args = append(args, "--publish", fmt.Sprintf("%d:8080", s.Published))
		}
		if _, err := d.lab.Hosts[0].Docker(ctx, append(args, d.image[s.Name])...); err != nil {
			return "", err
		}
	}
	err := testhost.WaitFor(ctx, 60*time.Second, "every replica running", func(ctx context.Context) error {
		return d.allRunning(ctx, d.lab.Hosts[0])
	})
	if err != nil {
		ps, _ := d.lab.Hosts[0].Docker(ctx, "service", "ps", "--no-trunc", "order", "api")
		return ps, err
	}
	return d.lab.Hosts[0].Docker(ctx, "service", "ls")
}

func (d *demo) allRunning(ctx context.Context, manager *testhost.Host) error {
	out, err := manager.Docker(ctx, "service", "ls", "--format", "{{.Name}} {{.Replicas}}")
	if err != nil {
		return err
	}
	if n := strings.Count(out, fmt.Sprintf(" %d/%d", replicas, replicas)); n != len(shopimage.Services) {
		return fmt.Errorf("%d of %d services complete:\n%s", n, len(shopimage.Services), out)
	}
	return nil
}

// reach asks, on each host, one container of each service to call all five by name.
func (d *demo) reach(ctx context.Context) (string, error) {
	calls := 0
	for _, h := range d.lab.Hosts {
		out, err := h.Docker(ctx, "ps", "--format", "{{.ID}} {{.Names}}")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			id, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			answer, err := h.Docker(ctx, "exec", id, "/shop", "probe", "http://127.0.0.1:8080/reach")
			if err != nil {
				return "", err
			}
			var reached []shop.Reached
			if err := json.Unmarshal([]byte(answer), &reached); err != nil {
				return "", err
			}
			for _, r := range reached {
				if r.Error != "" {
					return "", fmt.Errorf("%s on %s does not reach %s: %s", name, h.Name, r.Service, r.Error)
				}
				calls++
			}
		}
	}
	return fmt.Sprintf("%d calls by name, none failed", calls), nil
}

func (d *demo) published(ctx context.Context) (string, error) {
	client := d.lab.Client.HTTP(5 * time.Second)
	var lines []string
	for _, s := range shopimage.Services {
		if s.Published == 0 {
			continue
		}
		answered := map[string]bool{}
		for _, h := range d.lab.Hosts {
			for range 2 * replicas {
				resp, err := client.Get(fmt.Sprintf("http://%s:%d/whoami", h.Addr, s.Published))
				if err != nil {
					return "", err
				}
				var id shop.Identity
				err = json.NewDecoder(resp.Body).Decode(&id)
				resp.Body.Close()
				if err != nil {
					return "", err
				}
				if id.Client != d.lab.Client.Addr.String() {
					return "", fmt.Errorf("%s saw the client as %s, not as %s", id.Task, id.Client, d.lab.Client.Addr)
				}
				answered[id.Task] = true
			}
		}
		lines = append(lines, fmt.Sprintf("port %d on %d hosts: answered by %d tasks of %s, which saw the client's own address", s.Published, len(d.lab.Hosts), len(answered), s.Name))
	}
	return strings.Join(lines, "\n"), nil
}

func (d *demo) order(context.Context) (string, error) {
	resp, err := d.lab.Client.HTTP(10 * time.Second).Get(fmt.Sprintf("http://%s:8082/buy?item=tea&quantity=2", d.lab.Hosts[1].Addr))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	receipt, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status + ": " + string(receipt))
	}
	return string(receipt), nil
}

// lose cuts the last host off, kills everything on it, and waits until each service has all its replicas on the others;
// meanwhile requests go to the first host's published port.
func (d *demo) lose(ctx context.Context) (string, error) {
	d.lost = d.lab.Hosts[len(d.lab.Hosts)-1]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sent, failed int
	var stream sync.WaitGroup
	streaming, stopStream := context.WithCancel(ctx)
	stream.Go(func() {
		client := d.lab.Client.HTTP(2 * time.Second)
		for streaming.Err() == nil {
			sent++
			resp, err := client.Get(fmt.Sprintf("http://%s:8080/whoami", d.lab.Hosts[0].Addr))
			if err != nil {
				failed++
				continue
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	cut := time.Now()
	err := d.lost.Lose(ctx)
	if err == nil {
		err = testhost.WaitFor(ctx, 30*time.Second, "the lost replicas elsewhere", func(ctx context.Context) error {
			return d.servedElsewhere(ctx)
		})
	}
	back := time.Since(cut)
	stopStream()
	stream.Wait()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s cut off and killed; all %d replicas serve on the others %.1f s later; %d requests meanwhile, %d failed",
		d.lost.Name, replicas*len(shopimage.Services), back.Seconds(), sent, failed), nil
}

func (d *demo) servedElsewhere(ctx context.Context) error {
	manager := d.lab.Hosts[0]
	if err := d.allRunning(ctx, manager); err != nil {
		return err
	}
	args := []string{"service", "ps", "--filter", "desired-state=running", "--format", "{{.Name}} {{.Node}} {{.CurrentState}}"}
	for _, s := range shopimage.Services {
		args = append(args, s.Name)
	}
	out, err := manager.Docker(ctx, args...)
	if err != nil {
		return err
	}
	if strings.Contains(out, " "+d.lost.Name+" ") {
		return fmt.Errorf("tasks are still on %s:\n%s", d.lost.Name, out)
	}
	if n := strings.Count(out, " Running "); n != replicas*len(shopimage.Services) {
		return fmt.Errorf("%d tasks run:\n%s", n, out)
	}
	return nil
}

// table shows hosts × services: how many tasks of each run where.
func (d *demo) table(ctx context.Context) (string, error) {
	counts := map[string]map[string]int{}
	for _, s := range shopimage.Services {
		out, err := d.lab.Hosts[0].Docker(ctx, "service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}}", s.Name)
		if err != nil {
			return "", err
		}
		for node := range strings.FieldsSeq(out) {
			if counts[node] == nil {
				counts[node] = map[string]int{}
			}
			counts[node][s.Name]++
		}
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "HOST\tADDRESS\tSTATE")
	for _, s := range shopimage.Services {
		fmt.Fprintf(w, "\t%s", strings.ToUpper(s.Name))
	}
	fmt.Fprintln(w)
	for _, h := range d.lab.Hosts {
		state := "ready"
		if h == d.lost {
			state = "lost"
		}
		fmt.Fprintf(w, "%s\t%s\t%s", h.Name, h.Addr, state)
		for _, s := range shopimage.Services {
			fmt.Fprintf(w, "\t%s", strings.TrimSpace(strings.Repeat("● ", counts[h.Name][s.Name])))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	return text.String(), nil
}

// explore prints the lines to look around with and waits for Ctrl-C.
func (d *demo) explore(ctx context.Context) {
	h := d.lab.Hosts[0]
	fmt.Printf(`
It stays until you press Ctrl-C. In another terminal (as root):
  export DOCKER_HOST=%s
  docker node ls
  docker service ls
  docker service ps api
  docker service scale api=6
  docker run --rm --network shop %s probe http://api:8080/whoami
  nsenter --net=%s curl http://%s:8080/whoami
  nsenter --net=%s curl 'http://%s:8082/buy?item=noodles&quantity=3'
The daemons' logs: %s/host*/sampand.log
`, h.DockerHost(), d.image["api"], d.lab.Client.NetNS, h.Addr, d.lab.Client.NetNS, h.Addr, d.lab.Dir)
	<-ctx.Done()
}
