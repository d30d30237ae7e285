package docker

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/network"
)

func TestImages(t *testing.T) {
	l := newLab(t)
	old, recent := time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
	l.images.all["nginx:1"] = image.Image{ID: "sha256:aaaa", RepoTags: []string{"nginx:1", "reg.example:5000/team/nginx:1"}, Created: recent, Size: 10, Labels: map[string]string{"k": "v"}}
	l.images.all["busybox:latest"] = image.Image{ID: "sha256:bbbb", RepoTags: []string{"busybox:latest"}, Created: old, Size: 20}
	l.images.all["<none>"] = image.Image{ID: "sha256:cccc", Created: old, Size: 30}
	l.containers.add(container.Container{ID: "abc", ImageID: "sha256:aaaa"})
	c, ctx := l.client(t), t.Context()

	for _, tc := range []struct {
		filters client.Filters
		want    int
	}{
		{nil, 3},
		{client.Filters{}.Add("reference", "nginx"), 1},
		{client.Filters{}.Add("reference", "busy*"), 1},
		{client.Filters{}.Add("reference", "reg.example:5000/team/*"), 1},
		{client.Filters{}.Add("reference", "nosuch"), 0},
		{client.Filters{}.Add("dangling", "true"), 1},
		{client.Filters{}.Add("dangling", "false"), 2},
		{client.Filters{}.Add("label", "k=v"), 1},
		{client.Filters{}.Add("before", "nginx:1"), 2},
		{client.Filters{}.Add("since", "busybox"), 1},
		{client.Filters{}.Add("until", "24h"), 2},
		{client.Filters{}.Add("until", "24h").Add("until", "1m"), 2},
		{client.Filters{}.Add("reference", "docker.io/library/busybox"), 1},
		{client.Filters{}.Add("reference", "docker.io/library/busybox:*"), 1},
	} {
		if res, err := c.ImageList(ctx, client.ImageListOptions{Filters: tc.filters}); err != nil || len(res.Items) != tc.want {
			t.Errorf("%v: %d images, %v, want %d", tc.filters, len(res.Items), err, tc.want)
		}
	}
	// What the versions show of an image that one container is made by.
	for path, want := range map[string]string{
		"/v1.43/images/json": `"VirtualSize":10`, "/v1.43/system/df?type=image": `"VirtualSize":10`,
		"/v1.50/images/json": `"Containers":-1`, "/v1.51/images/json": `"Containers":1`,
	} {
		if _, _, body := l.do(t, "GET", path, "", ""); !strings.Contains(body, want) {
			t.Errorf("%s: %s is not in %s", path, want, body)
		}
	}
	if _, _, body := l.do(t, "GET", "/v1.44/images/json", "", ""); strings.Contains(body, "VirtualSize") {
		t.Errorf("1.44 shows what it has not: %s", body)
	}
	const noContainer = `"Container":"","ContainerConfig":{"Cmd":null,"Entrypoint":null,"Env":null,"Labels":null,"OnBuild":null,"User":"","Volumes":null,"WorkingDir":"","Hostname":"",`
	for version, want := range map[string]bool{"1.24": true, "1.41": true, "1.44": true, "1.45": false, "1.52": false} {
		if _, _, body := l.do(t, "GET", "/v"+version+"/images/nginx:1/json", "", ""); strings.Contains(body, noContainer) != want || strings.Contains(body, "ContainerConfig") != want {
			t.Errorf("the container of a build step, in %s: %s", version, body)
		}
	}
	if status, _, body := l.do(t, "GET", "/v1.54/images/json?identity=1", "", ""); status != 400 || !strings.Contains(body, "identity requires manifests=1") {
		t.Errorf("identity alone: %d %s", status, body)
	}
	// One platform of several.
	l.images.all["multi:1"] = image.Image{ID: "sha256:eeee", Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: "sha256:eeee"}, OS: "linux", Architecture: "amd64",
		Manifests: []image.Manifest{
			{Kind: image.KindImage, Available: true, Descriptor: ocispec.Descriptor{Digest: "sha256:e1"}, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}},
			{Kind: image.KindImage, Descriptor: ocispec.Descriptor{Digest: "sha256:e2"}, Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}},
			{Kind: image.KindAttestation, Of: "sha256:e1", Descriptor: ocispec.Descriptor{Digest: "sha256:e3"}},
		}}
	s390 := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	if in, err := c.ImageInspect(ctx, "multi:1", client.ImageInspectWithPlatform(&s390)); err != nil || in.Architecture != "s390x" || in.Descriptor.Digest != "sha256:e2" || in.Descriptor.Platform.Architecture != "s390x" {
		t.Errorf("%+v %v", in, err)
	}
	if _, err := c.ImageInspect(ctx, "multi:1", client.ImageInspectWithPlatform(&ocispec.Platform{OS: "linux", Architecture: "riscv64"})); !cerrdefs.IsNotFound(err) {
		t.Errorf("a platform there is not: %v", err)
	}
	if in, err := c.ImageInspect(ctx, "multi:1", client.ImageInspectWithManifests(true)); err != nil || len(in.Manifests) != 3 || in.Manifests[1].Available || in.Manifests[2].AttestationData.For != "sha256:e1" {
		t.Errorf("%+v %v", in.Manifests, err)
	}
	if status, _, body := l.do(t, "GET", `/images/multi:1/json?manifests=1&platform={"os":"linux","architecture":"amd64"}`, "", ""); status != 400 || !strings.Contains(body, "conflicting options") {
		t.Errorf("%d %s", status, body)
	}
	if res, err := c.ImageRemove(ctx, "multi:1", client.ImageRemoveOptions{Platforms: []ocispec.Platform{s390}}); err != nil || len(res.Items) != 1 || res.Items[0].Deleted != "sha256:s390x" {
		t.Errorf("%+v %v", res, err)
	}
	if res, err := c.ImageAttestations(ctx, "multi:1", client.ImageAttestationsWithStatement()); err != nil || len(res.Items) != 1 || string(*res.Items[0].Statement) != `{"a":1}` {
		t.Errorf("%+v %v", res, err)
	}
	if status, _, body := l.do(t, "GET", "/images/multi:1/attestations?platform={}&platform={}", "", ""); status != 400 || !strings.Contains(body, "only one platform") {
		t.Errorf("%d %s", status, body)
	}
	delete(l.images.all, "multi:1")
	// A repository's name alone stands for all its tags.
	l.images.all["team/app:2"] = image.Image{ID: "sha256:dddd", RepoTags: []string{"team/app:2"}}
	if status, _, body := l.do(t, "GET", "/images/get?names=team/app", "", ""); status != 200 {
		t.Errorf("save of a repository: %d %s", status, body)
	}
	if status, _, _ := l.do(t, "GET", "/images/get?names=team/nosuch", "", ""); status != 404 {
		t.Errorf("save of no repository: %d", status)
	}
	delete(l.images.all, "team/app:2")
	if _, err := c.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("reference", "[")}); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("a bad pattern: %v", err)
	}
	in, err := c.ImageInspect(ctx, "reg.example:5000/team/nginx:1")
	if err == nil {
		t.Errorf("the fake knows it under another name only, and yet: %+v", in)
	}
	if in, err = c.ImageInspect(ctx, "docker.io/library/nginx:1"); err != nil || in.ID != "sha256:aaaa" {
		t.Errorf("%+v %v", in, err)
	}
	if _, err := c.ImageTag(ctx, client.ImageTagOptions{Source: "nginx:1", Target: "reg.example/a/b:2"}); err != nil {
		t.Error(err)
	}
	if _, ok := l.images.all["reg.example/a/b:2"]; !ok {
		t.Error("not tagged")
	}
	if _, err := c.ImageRemove(ctx, "nginx:1", client.ImageRemoveOptions{}); !cerrdefs.IsConflict(err) {
		t.Errorf("removing an image in use: %v", err)
	}
	if res, err := c.ImageRemove(ctx, "busybox", client.ImageRemoveOptions{}); err != nil || len(res.Items) != 2 {
		t.Errorf("%+v %v", res, err)
	}
	if res, err := c.ImagePrune(ctx, client.ImagePruneOptions{}); err != nil || res.Report.SpaceReclaimed != 30 {
		t.Errorf("%+v %v", res, err)
	}
	saved, err := c.ImageSave(ctx, []string{"nginx:1"})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(saved); string(b) != "tar of nginx:1" {
		t.Errorf("saved %q", b)
	}
	saved.Close()
	if _, err := c.ImageSave(ctx, []string{"nosuch"}); !cerrdefs.IsNotFound(err) {
		t.Errorf("saving what is not there: %v", err)
	}
}

// messages decodes a progress stream.
func messages(t *testing.T, r io.Reader) (out []map[string]any) {
	t.Helper()
	for dec := json.NewDecoder(r); ; {
		var m map[string]any
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
}

func TestPullAndPush(t *testing.T) {
	l := newLab(t)
	c, ctx := l.client(t), t.Context()
	auth, _ := authconfig.Encode(registry.AuthConfig{Username: "u", Password: "p"})
	res, err := c.ImagePull(ctx, "nginx:1", client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		t.Fatal(err)
	}
	ms := messages(t, res)
	if l.images.pulled != "docker.io/library/nginx:1" || l.images.auth.Password != "p" {
		t.Errorf("pulled %q as %+v", l.images.pulled, l.images.auth)
	}
	if len(ms) != 2 || ms[1]["progressDetail"].(map[string]any)["total"] != 10.0 {
		t.Errorf("progress %v", ms)
	}
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if res, err = c.ImagePull(ctx, "reg.example/x@"+digest, client.ImagePullOptions{}); err != nil {
		t.Fatal(err)
	}
	messages(t, res)
	if l.images.pulled != "reg.example/x@"+digest {
		t.Errorf("pulled %q", l.images.pulled)
	}
	if _, err := c.ImagePull(ctx, "nosuch", client.ImagePullOptions{}); !cerrdefs.IsNotFound(err) {
		t.Errorf("an error before any progress: %v", err)
	}
	l.images.err = errors.New("the line broke")
	if res, err = c.ImagePull(ctx, "nginx", client.ImagePullOptions{}); err != nil {
		t.Fatal(err)
	}
	ms = messages(t, res)
	if last := ms[len(ms)-1]; last["error"] != "the line broke" || last["errorDetail"].(map[string]any)["message"] != "the line broke" {
		t.Errorf("an error after progress: %v", last)
	}
	push, err := c.ImagePush(ctx, "reg.example/x:2", client.ImagePushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ms := messages(t, push); ms[0]["status"] != "The push refers to repository [reg.example/x:2]" || ms[0]["aux"].(map[string]any)["Digest"] != "sha256:1" {
		t.Errorf("%v", ms)
	}
	load, err := c.ImageLoad(ctx, strings.NewReader("a tar"))
	if err != nil {
		t.Fatal(err)
	}
	if ms := messages(t, load); len(ms) != 2 || ms[0]["stream"] != "Loaded image: x:1\n" || ms[1]["stream"] != "Loaded image ID: sha256:2\n" {
		t.Errorf("%v", ms)
	}
	if _, err := c.ImageLoad(ctx, strings.NewReader("rubbish")); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("loading rubbish: %v", err)
	}
	imported, err := c.ImageImport(ctx, client.ImageImportSource{Source: strings.NewReader("x"), SourceName: "-"}, "mine:1", client.ImageImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ms := messages(t, imported); ms[0]["status"] != "sha256:imported" {
		t.Errorf("%v", ms)
	}
	if d, err := c.DistributionInspect(ctx, "alpine", client.DistributionInspectOptions{}); err != nil || len(d.Platforms) != 1 || d.Descriptor.Digest == "" {
		t.Errorf("%+v %v", d, err)
	}
	if r, err := c.RegistryLogin(ctx, client.RegistryLoginOptions{Username: "u", Password: "right"}); err != nil || r.Auth.IdentityToken != "token" {
		t.Errorf("%+v %v", r, err)
	}
}

func TestVolumes(t *testing.T) {
	l := newLab(t)
	c, ctx := l.client(t), t.Context()
	v, err := c.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "data", Labels: map[string]string{"k": "v"}})
	if err != nil || v.Volume.Driver != "local" || v.Volume.Mountpoint == "" || v.Volume.Scope != "local" {
		t.Errorf("%+v %v", v, err)
	}
	l.volumes.all["anon"] = volume.Volume{Name: "anon", Anonymous: true}
	l.volumes.all["used"] = volume.Volume{Name: "used", Anonymous: true}
	l.volumes.users["used"] = []string{"abc"}
	for _, tc := range []struct {
		filters client.Filters
		want    int
	}{{nil, 3}, {client.Filters{}.Add("label", "k"), 1}, {client.Filters{}.Add("dangling", "true"), 2}, {client.Filters{}.Add("name", "^us"), 1}, {client.Filters{}.Add("driver", "nfs"), 0}} {
		if res, err := c.VolumeList(ctx, client.VolumeListOptions{Filters: tc.filters}); err != nil || len(res.Items) != tc.want {
			t.Errorf("%v: %+v %v", tc.filters, res.Items, err)
		}
	}
	if _, err := c.VolumeRemove(ctx, "used", client.VolumeRemoveOptions{}); !cerrdefs.IsConflict(err) {
		t.Errorf("a volume in use: %v", err)
	}
	res, err := c.VolumePrune(ctx, client.VolumePruneOptions{})
	if err != nil || strings.Join(res.Report.VolumesDeleted, " ") != "anon" || res.Report.SpaceReclaimed != 100 {
		t.Errorf("prune takes those without a name of their own: %+v %v", res.Report, err)
	}
	if res, err = c.VolumePrune(ctx, client.VolumePruneOptions{All: true}); err != nil || strings.Join(res.Report.VolumesDeleted, " ") != "data" {
		t.Errorf("prune --all: %+v %v", res.Report, err)
	}
}

func TestNetworksOfHostAndClusterAreOneList(t *testing.T) {
	l := newLab(t)
	c, ctx := l.client(t), t.Context()
	if _, err := c.NetworkCreate(ctx, "over", client.NetworkCreateOptions{Driver: "overlay"}); !cerrdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "not a swarm manager") {
		t.Errorf("an overlay without a cluster: %v", err)
	}
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	over, err := c.NetworkCreate(ctx, "over", client.NetworkCreateOptions{Driver: "overlay", Attachable: true,
		IPAM: &apinetwork.IPAM{Config: []apinetwork.IPAMConfig{{Subnet: netip.MustParsePrefix("10.10.0.0/24")}}}})
	if err != nil {
		t.Fatal(err)
	}
	local, err := c.NetworkCreate(ctx, "front", client.NetworkCreateOptions{Labels: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"over", "front"} {
		if _, err := c.NetworkCreate(ctx, name, client.NetworkCreateOptions{}); !cerrdefs.IsConflict(err) {
			t.Errorf("%s again: %v", name, err)
		}
	}
	// The cluster's network is in use here: it is still one network, with the containers of this host.
	l.networks.all[over.ID] = network.Network{ID: over.ID, Scope: network.ScopeSwarm, Spec: network.Spec{Name: "over", Driver: "overlay"}, Peers: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
		Members: map[string]network.Endpoint{"ctr1": {ID: "ep", Owner: "web", IPv4: netip.MustParsePrefix("10.10.0.5/24"), MAC: "02:42:0a:0a:00:05"}}}
	list := func(f client.Filters) string {
		t.Helper()
		res, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: f})
		if err != nil {
			t.Error(err)
		}
		var names []string
		for _, n := range res.Items {
			names = append(names, n.Name)
		}
		return strings.Join(names, " ")
	}
	for _, tc := range []struct {
		filters client.Filters
		want    string
	}{
		{nil, "bridge front host none over"},
		{client.Filters{}.Add("scope", "swarm"), "over"},
		{client.Filters{}.Add("driver", "overlay"), "over"},
		{client.Filters{}.Add("type", "custom"), "front over"},
		{client.Filters{}.Add("dangling", "true"), "front"},
		{client.Filters{}.Add("label", "k=v"), "front"},
		{client.Filters{}.Add("name", "ove"), "over"},
	} {
		if got := list(tc.filters); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.filters, got, tc.want)
		}
	}
	in, err := c.NetworkInspect(ctx, "over", client.NetworkInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := in.Network
	if n.ID != over.ID || n.Scope != "swarm" || n.Containers["ctr1"].IPv4Address.String() != "10.10.0.5/24" || n.IPAM.Config[0].Subnet.String() != "10.10.0.0/24" || !n.Attachable {
		t.Errorf("%+v", n)
	}
	if len(n.Peers) != 2 || n.Peers[0].Name != "host-1" || n.Peers[1].IP.String() != "10.0.0.2" {
		t.Errorf("peers %+v", n.Peers)
	}
	if in, err = c.NetworkInspect(ctx, local.ID[:8], client.NetworkInspectOptions{}); err != nil || in.Network.Name != "front" {
		t.Errorf("by the beginning of its ID: %+v %v", in.Network, err)
	}
	if _, err := c.NetworkConnect(ctx, "front", client.NetworkConnectOptions{Container: "web", EndpointConfig: &apinetwork.EndpointSettings{Aliases: []string{"www"}}}); err != nil {
		t.Error(err)
	}
	if _, err := c.NetworkDisconnect(ctx, "over", client.NetworkDisconnectOptions{Container: "web", Force: true}); err != nil {
		t.Error(err)
	}
	if notes := l.containers.notes(); !strings.Contains(notes, "connect web "+local.ID+" aliases=[www]") || !strings.Contains(notes, "disconnect web "+over.ID+" force=true") {
		t.Error(notes)
	}
	if res, err := c.NetworkPrune(ctx, client.NetworkPruneOptions{}); err != nil || strings.Join(res.Report.NetworksDeleted, " ") != "front" {
		t.Errorf("pruned %+v %v", res.Report, err)
	}
	if _, err := c.NetworkRemove(ctx, "over", client.NetworkRemoveOptions{}); err != nil || len(l.swarm.cluster.networks) != 0 {
		t.Errorf("%v, and %d networks are left in the cluster", err, len(l.swarm.cluster.networks))
	}
}

func TestInfoAndVersion(t *testing.T) {
	l := newLab(t)
	l.containers.add(container.Container{ID: "a", State: container.State{Running: true}})
	l.containers.add(container.Container{ID: "b", State: container.State{Running: true, Paused: true}})
	l.containers.add(container.Container{ID: "c"})
	c, ctx := l.client(t), t.Context()
	res, err := c.Info(ctx, client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i := res.Info
	if i.Containers != 3 || i.ContainersRunning != 1 || i.ContainersPaused != 1 || i.ContainersStopped != 1 || i.NCPU != 2 || i.Name != "host-1" || !i.MemoryLimit ||
		i.Swarm.LocalNodeState != "inactive" || i.RuncCommit.ID != "1.5.2" || len(i.DefaultAddressPools) != 1 || i.DefaultRuntime != "runc" {
		t.Errorf("%+v", i)
	}
	if rc := i.RegistryConfig; !slices.Equal(rc.Mirrors, []string{"https://mirror.example/"}) || len(rc.InsecureRegistryCIDRs) != 3 || rc.InsecureRegistryCIDRs[2].String() != "10.0.0.0/8" ||
		rc.IndexConfigs["plain.example:5000"] == nil || rc.IndexConfigs["10.0.0.0/8"] != nil {
		t.Errorf("registries: %+v", rc)
	}
	if _, _, body := l.do(t, "GET", "/v1.48/info", "", ""); !strings.Contains(body, `"Expected":"1.5.2"`) {
		t.Errorf("older clients learn no expected version: %s", body)
	}
	if i.InitBinary != "/sbin/own-init" || i.InitCommit.ID != "N/A" {
		t.Errorf("program of --init: %q, version %q", i.InitBinary, i.InitCommit.ID)
	}
	v, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil || v.Version != "1.2.3" || v.APIVersion != "1.56" || v.MinAPIVersion != "1.24" || len(v.Components) != 2 || v.Components[0].Details["BuildTime"] != "2026-11-30T21:00:00Z" {
		t.Errorf("%+v %v", v, err)
	}
}

func TestDiskUsageInBothForms(t *testing.T) {
	l := newLab(t)
	l.images.all["x"] = image.Image{ID: "sha256:1", RepoTags: []string{"x:1"}, Size: 50, Layers: []string{"a"}, LayerSizes: []int64{50}}
	l.images.all["y"] = image.Image{ID: "sha256:2", RepoTags: []string{"y:1"}, Size: 70, Layers: []string{"b"}, LayerSizes: []int64{70}}
	l.containers.add(container.Container{ID: "a", ImageID: "sha256:1", State: container.State{Running: true}})
	l.volumes.all["v"], l.volumes.all["gone"] = volume.Volume{Name: "v"}, volume.Volume{Name: "gone"}
	l.volumes.removed = "gone" // after it was listed: it is left out
	res, err := l.client(t).DiskUsage(t.Context(), client.DiskUsageOptions{Images: true, Containers: true, Volumes: true, BuildCache: true, Verbose: true})
	if err != nil || res.Images.TotalSize != 120 || res.Images.ActiveCount != 1 || res.Images.Reclaimable != 70 || res.Volumes.Reclaimable != 100 || res.Containers.ActiveCount != 1 {
		t.Errorf("%+v %v", res, err)
	}
	var old struct {
		LayersSize                              int64
		Images, Containers, Volumes, BuildCache []map[string]any
		ImageUsage                              any
	}
	_, _, body := l.do(t, "GET", "/v1.50/system/df", "", "")
	if err := json.Unmarshal([]byte(body), &old); err != nil || old.LayersSize != 120 || len(old.Images) != 2 || len(old.Containers) != 1 || len(old.Volumes) != 1 || old.Volumes[0]["UsageData"] == nil || old.BuildCache == nil || old.ImageUsage != nil {
		t.Errorf("%s %v", body, err)
	}
}

func TestEventsOfHostAndCluster(t *testing.T) {
	l := newLab(t)
	l.swarm.cluster = newFakeCluster(clusterSpecForTest)
	l.events.Publish(events.Event{Type: "container", Action: "start", ID: "early", Attrs: map[string]string{"name": "web", "image": "nginx:1"}})
	c := l.client(t)
	stream := c.Events(t.Context(), client.EventsListOptions{Since: "1", Filters: client.Filters{}.Add("type", "container", "service")})
	next := func() string {
		t.Helper()
		select {
		case m := <-stream.Messages:
			return string(m.Type) + " " + string(m.Action) + " " + m.Actor.ID + " " + m.Scope
		case err := <-stream.Err:
			t.Fatal(err)
		}
		return ""
	}
	if got := next(); got != "container start early local" {
		t.Errorf("%q", got)
	}
	l.events.Publish(events.Event{Type: "network", Action: "create", ID: "not asked for"})
	l.events.Publish(events.Event{Type: "container", Action: "die", ID: "c1"})
	if got := next(); got != "container die c1 local" {
		t.Errorf("%q", got)
	}
	l.swarm.cluster.events <- control.Event{Type: "service", Action: "update", ID: "s1", Time: time.Now()}
	if got := next(); got != "service update s1 swarm" {
		t.Errorf("%q", got)
	}

	// Older clients look for status, id and from; the stream ends at until.
	_, h, body := l.do(t, "GET", "/v1.45/events?since=1&until="+"99", "", "")
	if body != "" || h.Get("Content-Type") != "application/json" {
		t.Errorf("%q %v", body, h)
	}
	now := time.Now().Unix() + 1
	_, _, body = l.do(t, "GET", "/v1.45/events?since=1&until="+time.Unix(now, 0).UTC().Format(time.RFC3339), "", "")
	if !strings.Contains(body, `"status":"start","id":"early","from":"nginx:1"`) {
		t.Errorf("%s", body)
	}
	// Who names only an end wants all that is remembered up to then.
	if _, _, body = l.do(t, "GET", "/v1.45/events?until="+strconv.FormatInt(now, 10), "", ""); !strings.Contains(body, `"id":"early"`) {
		t.Errorf("until only: %s", body)
	}
}

func TestEventFilters(t *testing.T) {
	start := events.Event{Type: "container", Action: "start", ID: "abcdef", Scope: "local", Attrs: map[string]string{"name": "web", "image": "nginx:1", "tier": "front"}}
	healthy := events.Event{Type: "container", Action: "health_status: healthy", ID: "abcdef", Attrs: map[string]string{"name": "web"}}
	pull := events.Event{Type: "image", Action: "pull", ID: "nginx:1", Attrs: map[string]string{"name": "nginx"}}
	for _, c := range []struct {
		filters filters
		event   events.Event
		want    bool
	}{
		{filters{}, start, true},
		{filters{"type": {"container"}}, start, true},
		{filters{"type": {"image"}}, start, false},
		{filters{"event": {"start", "die"}}, start, true},
		{filters{"event": {"die"}}, start, false},
		{filters{"event": {"health_status"}}, healthy, true},
		{filters{"container": {"web"}}, start, true},
		{filters{"container": {"abc"}}, start, true},
		{filters{"container": {"db"}}, start, false},
		{filters{"container": {"web"}}, pull, false},
		{filters{"image": {"nginx"}}, start, true},
		{filters{"image": {"nginx:1"}}, pull, true},
		{filters{"image": {"redis"}}, start, false},
		{filters{"label": {"tier=front"}}, start, true},
		{filters{"label": {"tier=back"}}, start, false},
		{filters{"scope": {"swarm"}}, start, false},
		{filters{"type": {"container"}, "event": {"die"}}, start, false},
	} {
		if got := includes(c.filters, &c.event); got != c.want {
			t.Errorf("%v on %s %s: %v", c.filters, c.event.Type, c.event.Action, got)
		}
	}
}

// TestImageConfigOfOldClients: templates such as {{.Config.Labels}} need the field although it is empty.
func TestImageConfigOfOldClients(t *testing.T) {
	l := newLab(t)
	l.images.all["x:1"] = image.Image{ID: "sha256:aa", RepoTags: []string{"x:1"}}
	for _, c := range []struct {
		version    string
		has, hasnt string
	}{{"1.49", `"Hostname":""`, `"nosuch"`}, {"1.50", `"Labels":null`, `"Hostname"`}, {"1.52", `"Config":{}`, `"Labels":null`}} {
		_, _, body := l.do(t, "GET", "/v"+c.version+"/images/x:1/json", "", "")
		if !strings.Contains(body, c.has) || strings.Contains(body, c.hasnt) {
			t.Errorf("%s: %s", c.version, body)
		}
	}
}
