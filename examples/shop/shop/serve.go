// Package shop is what the shop's five services share: how each serves, answers who it is, proves that it reaches the
// others by name, and checks its own health.
package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Services are the shop's services and the URL at which each answers for its health inside the network.
var Services = map[string]string{
	"order":    "http://order:8080/healthz",
	"billing":  "http://billing:8080/healthz",
	"console":  "http://console:8080/healthz",
	"terminal": "http://terminal:8080/healthz",
	"api":      "http://api:8080/healthz",
}

// Identity says which task answered.
type Identity struct {
	Service string `json:"service"`
	Task    string `json:"task"`
	Node    string `json:"node"`
	Client  string `json:"client"` // the address the request came from
}

// Reached is the outcome of asking one service by name.
type Reached struct {
	Service string `json:"service"`
	Task    string `json:"task,omitempty"`
	Node    string `json:"node,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Client is used for calls between services. It keeps no connections, so that every call is balanced anew.
var Client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Main runs a service. `NAME probe URL` asks a URL and exits 0 if it answers 2xx (a FROM scratch image has no curl);
// otherwise mux is served on :8080, besides /healthz, /whoami and /reach, until SIGTERM; requests under way are finished.
func Main(service string, mux *http.ServeMux, background ...func(ctx context.Context) error) {
	if len(os.Args) > 2 && os.Args[1] == "probe" {
		probe(os.Args[2])
		return
	}
	me := Identity{Service: service, Task: os.Getenv("SHOP_TASK"), Node: os.Getenv("SHOP_NODE")}
	if me.Task == "" {
		me.Task, _ = os.Hostname()
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { JSON(w, who(me, r)) })
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { JSON(w, who(me, r)) })
	mux.HandleFunc("GET /reach", func(w http.ResponseWriter, r *http.Request) { JSON(w, reachAll(r.Context())) })

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for _, run := range background {
		go func() {
			if err := run(ctx); err != nil {
				fmt.Fprintln(os.Stderr, service+":", err)
				os.Exit(1)
			}
		}()
	}
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		deadline, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		_ = server.Shutdown(deadline)
	}()
	fmt.Printf("%s: task %s serves on %s\n", service, me.Task, server.Addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, service+":", err)
		os.Exit(1)
	}
	fmt.Printf("%s: task %s stops\n", service, me.Task)
}

// JSON answers with v as JSON.
func JSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Fail answers with an error as JSON.
func Fail(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

func who(me Identity, r *http.Request) Identity {
	me.Client, _, _ = net.SplitHostPort(r.RemoteAddr)
	return me
}

func reachAll(ctx context.Context) []Reached {
	var all []Reached
	for service, url := range Services {
		r := Reached{Service: service}
		var id Identity
		if err := GetJSON(ctx, url, &id); err != nil {
			r.Error = err.Error()
		}
		r.Task, r.Node = id.Task, id.Node
		all = append(all, r)
	}
	return all
}

// GetJSON gets url and decodes its JSON answer into v.
func GetJSON(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, v)
}

func probe(url string) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	var answer json.RawMessage
	if err := GetJSON(ctx, url, &answer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.Write(append(answer, '\n'))
}
