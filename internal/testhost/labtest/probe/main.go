// Probe is the program of the test image. As /bin/sh it takes "-c VERB …", so that health commands and `docker exec`
// work in an image without a shell; variables of the environment are expanded in it.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	if len(args) > 1 && args[0] == "-c" {
		args = strings.Fields(os.ExpandEnv(args[1]))
		if len(args) > 0 && args[0] == "/probe" {
			args = args[1:]
		}
	}
	if len(args) == 0 {
		args = []string{"serve"}
	}
	if err := run(args[0], args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(verb string, args []string) error {
	switch verb {
	case "true":
		return nil
	case "false":
		os.Exit(1)
	case "exit":
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(code)
	case "sleep": // sleep [DURATION]: until SIGTERM, or as long
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
		var over <-chan time.Time
		if len(args) > 0 {
			d, err := time.ParseDuration(args[0])
			if err != nil {
				return err
			}
			over = time.After(d)
		}
		select {
		case <-stop:
		case <-over:
		}
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "err":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "env":
		env := os.Environ()
		slices.Sort(env)
		fmt.Println(strings.Join(env, "\n"))
	case "cat":
		if len(args) == 0 {
			_, err := io.Copy(os.Stdout, os.Stdin)
			return err
		}
		for _, path := range args {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			os.Stdout.Write(text)
		}
	case "write":
		return os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")+"\n"), 0o644)
	case "ls":
		entries, err := os.ReadDir(args[0])
		if err != nil {
			return err
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	case "id":
		host, _ := os.Hostname()
		wd, _ := os.Getwd()
		fmt.Println(os.Getuid(), os.Getgid(), host, wd)
	case "eat": // eat N: N MiB of memory, each page touched
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		eaten := make([]byte, n<<20)
		for i := 0; i < len(eaten); i += os.Getpagesize() {
			eaten[i] = 1
		}
		fmt.Println("ate", len(eaten))
	case "spawn": // spawn N: N children at once
		return spawn(args[0])
	case "bomb": // bomb N: a fork bomb of at most N forks
		return bomb(args[0])
	case "open": // open PATH: for reading
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		return f.Close()
	case "mknod-open": // mknod-open PATH c|b MAJOR MINOR: a device node, made, opened and removed
		return mknodOpen(args)
	case "owner": // owner PATH…: user and group of each
		for _, path := range args {
			var st syscall.Stat_t
			if err := syscall.Lstat(path, &st); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			fmt.Printf("%d:%d\n", st.Uid, st.Gid)
		}
	case "chown": // chown PATH UID GID
		uid, err1 := strconv.Atoi(args[1])
		gid, err2 := strconv.Atoi(args[2])
		return errors.Join(err1, err2, os.Chown(args[0], uid, gid))
	case "listen": // listen PORT: once, for a moment
		l, err := net.Listen("tcp", ":"+args[0])
		if err != nil {
			return err
		}
		return l.Close()
	case "listen-raw": // a raw socket, as ping may use
		c, err := net.ListenPacket("ip4:icmp", "127.0.0.1")
		if err != nil {
			return err
		}
		return c.Close()
	case "listen-ping": // a socket for pings without a capability
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		return syscall.Close(fd)
	case "lookup":
		addrs, err := net.LookupHost(args[0])
		if err != nil {
			return err
		}
		slices.Sort(addrs)
		fmt.Println(strings.Join(addrs, "\n"))
	case "services": // services PORT PROTOCOL NAME: who serves it
		_, servers, err := net.LookupSRV(args[0], args[1], args[2])
		if err != nil {
			return err
		}
		for _, s := range servers {
			fmt.Printf("%s:%d\n", s.Target, s.Port)
		}
	case "get":
		return get(args[0])
	case "count": // count N: N numbered lines
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintf(w, "line %d\n", i)
		}
		return w.Flush()
	case "tick": // a numbered line every 10 ms until SIGTERM, then its number again and exit code 7
		return tick()
	case "signal-others": // SIGTERM to every process of the container but the first and this one
		return signalOthers()
	case "serve":
		return serve(args)
	case "fail-after": // serve for a while, then exit 1
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		go func() { <-time.After(d); os.Exit(1) }()
		return serve(nil)
	default:
		return fmt.Errorf("unknown verb %q", verb)
	}
	return nil
}

func spawn(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var children []*exec.Cmd
	defer func() {
		for _, c := range children {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	for range n {
		c := exec.Command("/proc/self/exe", "sleep")
		if err := c.Start(); err != nil {
			return err
		}
		children = append(children, c)
	}
	return nil
}

func mknodOpen(args []string) error {
	kind := map[string]uint32{"c": syscall.S_IFCHR, "b": syscall.S_IFBLK}[args[1]]
	major, err1 := strconv.Atoi(args[2])
	minor, err2 := strconv.Atoi(args[3])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if err := syscall.Mknod(args[0], kind|0o600, major<<8|minor); err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	defer os.Remove(args[0])
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	return f.Close()
}

func get(url string) error {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(os.Stdout, resp.Body)
	fmt.Println()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}

func tick() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	t := time.NewTicker(10 * time.Millisecond)
	for i := 0; ; i++ {
		fmt.Println("tick", i)
		select {
		case <-t.C:
		case <-stop:
			fmt.Println("last", i)
			os.Exit(7)
		}
	}
}

// serve answers on :8080 over TCP (HTTP: "HOSTNAME VERSION CLIENT") and on :8081 over UDP (the host name), until SIGTERM;
// requests under way are finished.
func serve(args []string) error {
	host, _ := os.Hostname()
	version := strings.Join(args, " ")
	if pc, err := net.ListenPacket("udp", ":8081"); err == nil {
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(host), from)
			}
		}()
	}
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s %s %s", host, version, client)
	})}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		<-stop
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		close(done)
	}()
	fmt.Println("serving", host, version)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	<-done
	return nil
}
