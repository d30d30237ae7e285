// Demo shows Sampan on one machine: three hosts as network namespaces, one cluster, the shop on it, the proof that its
// services reach each other, and the loss of a host while requests stream.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

func main() {
	keep := flag.Bool("keep", false, "leave everything running and print how to explore it")
	bin := flag.String("bin", "bin", "folder of Sampan's programs")
	hosts := flag.Int("hosts", 3, "number of hosts, 3 to 9")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *hosts, *keep); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			fmt.Println("\nStopped; everything the demo made is gone.")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, n int, keep bool) (err error) {
	if os.Getuid() != 0 {
		return errors.New("three hosts on one machine are network namespaces: run it as root (sudo make demo)")
	}
	if n < 3 || n > 9 {
		return fmt.Errorf("%d hosts: want 3 to 9", n)
	}
	began := time.Now()
	d := &demo{}
	d.lab, err = testhost.NewLab(ctx, n, testhost.Options{Binaries: bin, Args: []string{testhost.InsecureArg}})
	if err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			d.explore(ctx)
		}
		if err != nil && ctx.Err() == nil {
			for _, h := range d.lab.Hosts {
				fmt.Fprintf(os.Stderr, "--- the end of %s's log\n%s\n", h.Name, h.LogTail(15))
			}
		}
		err = errors.Join(err, d.lab.Close(ctx))
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"build the shop's five images, FROM scratch, into a registry", d.images},
		{fmt.Sprintf("start %d hosts, a sampand each", n), d.start},
		{"make them one cluster (three managers)", d.cluster},
		{"create the overlay network shop, 10.10.0.0/24", d.network},
		{"deploy five services, replicated over the hosts", d.deploy},
		{"each service reached by name from each host", d.reach},
		{"published ports answer on every host, from outside", d.published},
		{"an order goes through terminal, API, order and billing", d.order},
		{"a host is lost while requests stream", d.lose},
	} {
		if err := d.step(ctx, step.what, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	table, err := d.table(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\n%s\nAll of it works: %s in all.\n", table, time.Since(began).Round(100*time.Millisecond))
	return nil
}
