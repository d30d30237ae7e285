package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// claimAddress is an abstract socket: it belongs to the network namespace, and goes with the process that has it.
const claimAddress = "@sampan/networks"

// Claim is one daemon's hold on the network namespace that it runs in: its bridges and firewall tables have the same names
// in every daemon, so that a second one there would take them for its own.
type Claim struct{ listener net.Listener }

// holder is what a claim says of who has it.
type holder struct {
	PID      int    `json:"pid"`
	DataRoot string `json:"dataRoot"`
}

// TakeClaim takes the network namespace of this process. If another daemon has it, the error (fault.Conflict) names it.
func TakeClaim(dataRoot string) (*Claim, error) {
	l, err := net.Listen("unix", claimAddress)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fault.New(fault.Conflict, "%s already has the networks of this host: stop it, or run this one in a network namespace of its own: "+
			"ip netns add other && nsenter --net=/run/netns/other sampand --data-root … --exec-root … --pidfile … --host …", askHolder())
	}
	if err != nil {
		return nil, fmt.Errorf("claim of the network namespace: %w", err)
	}
	c := &Claim{listener: l}
	go c.answer(holder{PID: os.Getpid(), DataRoot: dataRoot})
	return c, nil
}

// Close gives the namespace up.
func (c *Claim) Close() error { return c.listener.Close() }

// answer tells whoever asks who it is that has the claim.
func (c *Claim) answer(h holder) {
	text, _ := json.Marshal(h)
	for {
		conn, err := c.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Second) // out of descriptors: not a busy loop
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(text)
		_ = conn.Close()
	}
}

// askHolder names who has the claim, as far as it tells.
func askHolder() string {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", claimAddress)
	if err != nil {
		return "another sampand"
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	var h holder
	if err := json.NewDecoder(conn).Decode(&h); err != nil || h.DataRoot == "" {
		return "another sampand"
	}
	return fmt.Sprintf("another sampand (process %d, --data-root %s)", h.PID, h.DataRoot)
}
