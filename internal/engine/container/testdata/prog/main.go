// prog is what runs in the containers of these tests: a static program that does what its arguments say.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"wait"}
	}
	switch args[0] {
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "err":
		fmt.Fprintln(os.Stderr, strings.Join(args[1:], " "))
	case "exit":
		n, _ := strconv.Atoi(args[1])
		os.Exit(n)
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
	case "cat": // files, or standard input
		if len(args) == 1 {
			_, _ = io.Copy(os.Stdout, os.Stdin)
		}
		for _, f := range args[1:] {
			b, err := os.ReadFile(f)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			_, _ = os.Stdout.Write(b)
		}
	case "write":
		if err := os.WriteFile(args[1], []byte(strings.Join(args[2:], " ")), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "lines": // lines N: N numbered lines
		n, _ := strconv.Atoi(args[1])
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintf(w, "line %d\n", i)
		}
		_ = w.Flush()
	case "id":
		groups, _ := os.Getgroups()
		wd, _ := os.Getwd()
		host, _ := os.Hostname()
		fmt.Println(os.Getuid(), os.Getgid(), groups, wd, host)
	case "trap": // trap CODE: ready, then exits with CODE at SIGTERM
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGHUP)
		fmt.Println("ready")
		for s := range c {
			fmt.Println("got", s)
			if s == syscall.SIGTERM {
				n, _ := strconv.Atoi(args[1])
				os.Exit(n)
			}
		}
	case "talk": // ready, then a word at each SIGUSR1
		words := make(chan os.Signal, 8)
		signal.Notify(words, syscall.SIGUSR1)
		fmt.Println("ready")
		for range words {
			fmt.Println("again")
		}
	case "stubborn": // ignores SIGTERM
		c := make(chan os.Signal, 8)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		for range c {
		}
	case "wait":
		fmt.Println("ready")
		c := make(chan os.Signal, 1)
		signal.Notify(c)
		<-c
		os.Exit(0)
	case "gate": // gate FIFO: exits with the number somebody writes into a FIFO
		b, err := os.ReadFile(args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		os.Exit(n)
	case "health": // 0 if the file says ok
		b, err := os.ReadFile(args[1])
		fmt.Print("probe: ", string(b))
		if err != nil || strings.TrimSpace(string(b)) != "ok" {
			os.Exit(1)
		}
	case "spawn": // a child that waits
		cmd := exec.Command("/bin/prog", "wait")
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("ready")
		_ = cmd.Wait()
	}
}
