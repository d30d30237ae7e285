package docker

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// TestHistoryHasTheSizesOfLayers: an entry has its own layer's size; one that made no layer has none.
func TestHistoryHasTheSizesOfLayers(t *testing.T) {
	img := image.Image{LayerSizes: []int64{100, 20}, History: []ocispec.History{{CreatedBy: "base"}, {CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "COPY"}}}
	var got []int64
	for _, h := range imageHistory(&img) {
		got = append(got, h.Size)
	}
	if want := []int64{20, 0, 100}; !slices.Equal(got, want) {
		t.Errorf("sizes %v, newest first, want %v", got, want)
	}
}

// TestNetworksAreAnnounced: who watches events hears of networks that come and go.
func TestNetworksAreAnnounced(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	n, err := c.NetworkCreate(t.Context(), "net1", client.NetworkCreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NetworkRemove(t.Context(), "net1", client.NetworkRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	past, _ := l.events.Subscribe(t.Context(), time.Unix(1, 0))
	var got []string
	for _, e := range past {
		if e.ID == n.ID && e.Attrs["name"] == "net1" {
			got = append(got, e.Type+" "+e.Action)
		}
	}
	if want := []string{"network create", "network destroy"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestPrunesAreAnnounced: each kind of thing has an event of its prune with the space that it gave back.
func TestPrunesAreAnnounced(t *testing.T) {
	l := newLab(t)
	l.containers.all["c1"] = &container.Container{ID: "c1", State: container.State{Status: container.StatusExited}}
	var want []string
	for path, event := range map[string]string{
		"/containers/prune": "container 10", "/images/prune": "image 0", "/volumes/prune": "volume 0", "/networks/prune": "network 0", "/build/prune": "builder 7",
	} {
		if code, _, text := l.do(t, "POST", path, "", ""); code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, code, text)
		}
		want = append(want, event)
	}
	past, _ := l.events.Subscribe(t.Context(), time.Unix(1, 0))
	var got []string
	for _, e := range past {
		if e.Action == "prune" && e.ID == "" {
			got = append(got, e.Type+" "+e.Attrs["reclaimed"])
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestNothingOfTheHostConfigIsDropped: what a request asks of the first process' umask and terminal is in the answer.
func TestNothingOfTheHostConfigIsDropped(t *testing.T) {
	l := newLab(t)
	create := func(hostConfig string) (int, string) {
		code, _, text := l.do(t, http.MethodPost, "/containers/create?name=c1", "application/json", `{"Image":"app","HostConfig":`+hostConfig+`}`)
		return code, text
	}
	if code, text := create(`{"Umask":1000}`); code != http.StatusBadRequest {
		t.Errorf("a umask past 0777: %d %s", code, text)
	}
	if code, text := create(`{"Umask":23,"ConsoleSize":[30,100]}`); code != http.StatusCreated {
		t.Fatalf("%d %s", code, text)
	}
	got, err := l.client(t).ContainerInspect(t.Context(), "c1", client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := got.Container.HostConfig
	if h.Umask == nil || *h.Umask != 0o27 || h.ConsoleSize != [2]uint{30, 100} {
		t.Errorf("umask %v, console %v", h.Umask, h.ConsoleSize)
	}
}

// TestPullOfEveryTag: without a tag, a repository's name stands for all its tags.
func TestPullOfEveryTag(t *testing.T) {
	l := newLab(t)
	for query, want := range map[string][]string{
		"fromImage=r.example/app":              {"r.example/app:1", "r.example/app:2"},
		"fromImage=r.example/app&tag=1":        {"r.example/app:1"},
		"fromImage=r.example/app:3":            {"r.example/app:3"},
		"fromImage=r.example/app:3&tag=latest": {"r.example/app:latest"},
	} {
		l.images.pulls = nil
		if code, _, text := l.do(t, http.MethodPost, "/images/create?"+query, "", ""); code != http.StatusOK {
			t.Fatalf("%s: %d %s", query, code, text)
		}
		if !slices.Equal(l.images.pulls, want) {
			t.Errorf("%s: pulled %q, want %q", query, l.images.pulls, want)
		}
	}
}
