package container

import (
	"fmt"
	"slices"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/image"
)

func TestCommitTakesTheConfiguration(t *testing.T) {
	b := newBed(t)
	id := b.run(Config{Env: []string{"A=b"}, ExposedPorts: []Port{{Port: 80, Protocol: "tcp"}}}, "wait")
	img, err := b.m.Commit(t.Context(), id, image.CommitRequest{Ref: "new:1"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(img.Config.Env, "A=b") || !slices.Equal(img.Config.Cmd, []string{"wait"}) {
		t.Errorf("%+v", img.Config)
	}
	if _, ok := img.Config.ExposedPorts["80/tcp"]; !ok {
		t.Errorf("ports %v", img.Config.ExposedPorts)
	}
	contains(t, b.actions(id), "pause", "commit", "unpause")
}

// TestCommitLaysTheRequestOver: what the request says wins, what it does not say is the container's.
func TestCommitLaysTheRequestOver(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{Env: []string{"A=b", "C=d", "GONE"}, Labels: map[string]string{"own": "1", "both": "1"}, ExposedPorts: []Port{{Port: 80, Protocol: "tcp"}}}, "wait")
	img, err := b.m.Commit(t.Context(), id, image.CommitRequest{Config: image.Image{Config: ocispec.ImageConfig{User: "alice", Env: []string{"A=c"},
		Labels: map[string]string{"both": "2", "new": "3"}, ExposedPorts: map[string]struct{}{"53/udp": {}}}}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(img.Config.User, img.Config.Cmd, img.Config.Labels), "alice[wait] map[both:2 new:3 own:1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if env := img.Config.Env; !slices.Contains(env, "A=c") || !slices.Contains(env, "C=d") || slices.Contains(env, "GONE") || slices.Contains(env, "A=b") {
		t.Errorf("environment %v", env)
	}
	if len(img.Config.ExposedPorts) != 2 {
		t.Errorf("ports %v", img.Config.ExposedPorts)
	}
	// An entrypoint of the request is not given the container's command.
	img, err = b.m.Commit(t.Context(), id, image.CommitRequest{Config: image.Image{Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/prog"}, Cmd: []string{"env"}}}}, true)
	if err != nil || fmt.Sprint(img.Config.Entrypoint, img.Config.Cmd) != "[/bin/prog] [env]" {
		t.Errorf("%v %v %v", img.Config.Entrypoint, img.Config.Cmd, err)
	}
}

// TestCommitIsToldByItsName: who watches hears of the image's new name first, written as people write it.
func TestCommitIsToldByItsName(t *testing.T) {
	b := newBed(t)
	id := b.create(Config{}, "wait")
	img, err := b.m.Commit(t.Context(), id, image.CommitRequest{Ref: "docker.io/library/new:1"}, true)
	if err != nil {
		t.Fatal(err)
	}
	past, _ := b.bus.Subscribe(t.Context(), time.Unix(1, 0))
	var got []string
	for _, e := range past {
		switch e.Action {
		case "create", "tag":
			if e.Type == "image" {
				got = append(got, e.Action+" "+e.ID+" "+e.Attrs["name"])
			}
		case "commit":
			got = append(got, "commit "+e.Attrs["imageRef"])
		}
	}
	if want := []string{"create " + img.ID + " " + img.ID, "tag " + img.ID + " new:1", "commit new:1"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}
