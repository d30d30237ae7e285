// Tool is the one program of the image that both engines run while they are measured.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "true":
	case "sleep":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
		<-stop
	case "mkdir":
		err = os.Mkdir(args[0], 0o755)
	case "print":
		err = print(args[0])
	case "serve":
		err = serve()
	case "count":
		err = count(args[0], args[1])
	case "receive":
		err = receive(args[0])
	case "send":
		err = send(args[0], args[1])
	default:
		err = fmt.Errorf("unknown verb %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// print prints so many bytes, in lines as programs log them.
func print(size string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for i := 0; n > 0; i++ {
		m, err := fmt.Fprintf(out, "2026-01-02T03:04:05.678Z INFO order=%08d customer=%d item=\"paper boat, large\" state=paid took=12ms\n", i, i%977)
		if err != nil {
			return err
		}
		n -= m
	}
	return out.Flush()
}

// serve answers every request with the task's host name.
func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		os.Exit(0)
	}()
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
}

// count asks url, a new connection each time and every address that its name has in turn, until n different tasks have
// answered; it prints the Unix time in nanoseconds at which the last did.
func count(host, n string) error {
	want, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(3 * time.Minute); len(seen) < want; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d tasks answered in three minutes", len(seen), want)
		}
		addrs, err := net.DefaultResolver.LookupHost(context.Background(), host)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		for _, a := range addrs {
			resp, err := client.Get("http://" + net.JoinHostPort(a, "8080"))
			if err != nil {
				continue
			}
			name, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			seen[string(name)] = true
		}
	}
	fmt.Println(time.Now().UnixNano())
	return nil
}

// receive takes connections on addr and reads each to its end.
func receive(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 1<<20)
			var n int64
			for {
				k, err := c.Read(buf)
				n += int64(k)
				if err != nil {
					break
				}
			}
		}()
	}
}

// send writes to addr for the given time and prints bytes per second.
func send(addr, seconds string) error {
	d, err := time.ParseDuration(seconds)
	if err != nil {
		return err
	}
	var c net.Conn
	for range 200 {
		if c, err = net.Dial("tcp", addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 1<<17)
	began := time.Now()
	var n int64
	for time.Since(began) < d {
		k, err := c.Write(buf)
		n += int64(k)
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(float64(n) / time.Since(began).Seconds())
}
