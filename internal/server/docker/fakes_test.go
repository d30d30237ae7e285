package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

// lab is the API over backends in memory, on a unix socket.
type lab struct {
	socket     string
	containers *fakeContainers
	images     *fakeImages
	volumes    *fakeVolumes
	networks   *fakeNetworks
	events     *events.Bus
	swarm      *fakeSwarm
	log        *syncBuffer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{
		socket: filepath.Join(dir, "s"), events: &events.Bus{}, swarm: &fakeSwarm{}, log: &syncBuffer{},
		containers: &fakeContainers{all: map[string]*container.Container{}, streams: map[string]*fakeStream{}, execs: map[string]*container.Exec{}, exited: make(chan struct{})},
		images:     &fakeImages{all: map[string]image.Image{}}, volumes: &fakeVolumes{all: map[string]volume.Volume{}, users: map[string][]string{}},
		networks: &fakeNetworks{all: map[string]network.Network{}},
	}
	for i, name := range []string{"bridge", "host", "none"} {
		id := strings.Repeat(fmt.Sprint(i), 64)
		l.networks.all[id] = network.Network{ID: id, Scope: network.ScopeLocal, Spec: network.Spec{Name: name, Driver: name, IPv4: true}}
	}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: New(Config{
		Containers: l.containers, Images: l.images, Volumes: l.volumes, Networks: l.networks, Events: l.events, Swarm: l.swarm,
		Host: fakeHost{}, Builder: &fakeBuilder{}, Registry: fakeRegistry{}, Logger: slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})}
	go server.Serve(listener) //nolint:errcheck // closed at the end
	t.Cleanup(func() { server.Close() })
	return l
}

func (l *lab) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.WithHost("unix://" + l.socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// do sends a raw request and returns the answer's status, headers and body.
func (l *lab) do(t *testing.T, method, path, contentType, body string) (int, http.Header, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://d"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	out, _ := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(out)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type fakeHost struct{}

func (fakeHost) Info() HostInfo {
	return HostInfo{
		ID: "host-id", Name: "host-1", DataRoot: "/var/lib/sampan", Driver: "overlayfs", KernelVersion: "6.1.0", OperatingSystem: "Debian", Architecture: "x86_64",
		NCPU: 2, MemTotal: 4 << 30, CgroupDriver: "cgroupfs", CgroupVersion: "2", Version: "1.2.3", GitCommit: "abc", BuildTime: "2026-11-30T21:00:00Z", InitBinary: "/sbin/own-init", Labels: []string{"rack=1"},
		Mirrors: []string{"https://mirror.example"}, InsecureRegistries: []string{"10.0.0.0/8", "plain.example:5000"},
		DefaultAddressPools: []AddressPool{{Base: netip.MustParsePrefix("172.17.0.0/12"), Size: 16}}, Components: []Component{{"runc", "1.5.2"}},
		Capabilities: Capabilities{MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true, IPv4Forwarding: true},
	}
}

type fakeRegistry struct{}

func (fakeRegistry) Login(_ context.Context, a image.Auth) (string, error) {
	if a.Password != "right" {
		return "", fault.New(fault.Unauthorized, "unauthorized: incorrect username or password")
	}
	return "token", nil
}

func (fakeRegistry) Resolve(_ context.Context, ref string, _ image.Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	if !strings.HasPrefix(ref, "docker.io/library/") {
		return ocispec.Descriptor{}, nil, fault.New(fault.NotFound, "manifest for %s not found", ref)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(ref), Size: 3}, []ocispec.Platform{{OS: "linux", Architecture: "amd64"}}, nil
}
