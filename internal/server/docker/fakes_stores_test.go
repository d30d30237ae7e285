package docker

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/engine/image"
	"github.com/sampan-cloud/sampan/internal/engine/volume"
	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/network"
)

type fakeImages struct {
	mu     sync.Mutex
	all    map[string]image.Image // by name
	pulled string
	pulls  []string
	auth   image.Auth
	err    error // of pull, after some progress
}

var _ Images = (*fakeImages)(nil)

func (f *fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, img := range f.all {
		if name == ref || familiar(name) == familiar(ref) || strings.HasPrefix(img.ID, ref) {
			return img, nil
		}
	}
	return image.Image{}, fault.New(fault.NotFound, "No such image: %s", ref)
}
func (f *fakeImages) List(context.Context) (out []image.Image, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, img := range f.all {
		out = append(out, img)
	}
	return out, nil
}
func (f *fakeImages) Pull(_ context.Context, ref, _ string, auth image.Auth, progress func(image.Progress)) (image.Image, error) {
	f.pulled, f.auth, f.pulls = ref, auth, append(f.pulls, ref)
	if strings.Contains(ref, "nosuch") {
		return image.Image{}, fault.New(fault.NotFound, "pull access denied for nosuch")
	}
	progress(image.Progress{ID: "latest", Status: "Pulling from library/x"})
	progress(image.Progress{ID: "abc", Status: "Downloading", Current: 5, Total: 10})
	return image.Image{}, f.err
}
func (f *fakeImages) Tags(context.Context, string, image.Auth) ([]string, error) {
	return []string{"1", "2"}, nil
}
func (f *fakeImages) Push(_ context.Context, ref string, _ image.Auth, progress func(image.Progress), _ ...ocispec.Platform) error {
	progress(image.Progress{Status: "The push refers to repository [" + ref + "]", Aux: map[string]string{"Digest": "sha256:1"}})
	return nil
}
func (f *fakeImages) Load(_ context.Context, r io.Reader, progress func(image.Progress), _ ...ocispec.Platform) ([]image.Image, error) {
	b, _ := io.ReadAll(r)
	if string(b) != "a tar" {
		return nil, fault.New(fault.InvalidArgument, "unrecognized image format")
	}
	return []image.Image{{ID: "sha256:1", RepoTags: []string{"x:1"}}, {ID: "sha256:2"}}, nil
}
func (f *fakeImages) Save(_ context.Context, refs []string, w io.Writer, only ...ocispec.Platform) error {
	for _, p := range only {
		refs = append(refs, p.OS+"/"+p.Architecture)
	}
	_, err := io.WriteString(w, "tar of "+strings.Join(refs, ","))
	return err
}
func (f *fakeImages) Import(_ context.Context, r io.Reader, ref string, o image.ImportOptions) (image.Image, error) {
	_, _ = io.Copy(io.Discard, r)
	return image.Image{ID: "sha256:imported"}, nil
}
func (f *fakeImages) Tag(ctx context.Context, source, target string) error {
	img, err := f.Get(ctx, source)
	if err == nil {
		f.mu.Lock()
		f.all[target] = img
		f.mu.Unlock()
	}
	return err
}
func (f *fakeImages) Remove(ctx context.Context, ref string, force, _ bool, inUse func(string) []string) ([]image.Removed, error) {
	img, err := f.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if users := inUse(img.ID); len(users) > 0 && !force {
		return nil, fault.New(fault.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image", ref, shortID(users[0]))
	}
	return []image.Removed{{Untagged: ref, ImageID: img.ID}, {Deleted: img.ID, ImageID: img.ID}}, nil
}
func (f *fakeImages) ForPlatform(ctx context.Context, ref, platform string) (image.Image, error) {
	img, err := f.Get(ctx, ref)
	for _, m := range img.Manifests {
		if platform != "" && platforms.Format(m.Platform) == platform {
			img.Manifest, img.OS, img.Architecture, img.Variant = m.Descriptor, m.Platform.OS, m.Platform.Architecture, m.Platform.Variant
		}
	}
	return img, err
}
func (f *fakeImages) Attestations(ctx context.Context, ref string, _ *ocispec.Platform, types []string, statements bool) ([]image.Attestation, error) {
	if _, err := f.Get(ctx, ref); err != nil {
		return nil, err
	}
	a := image.Attestation{PredicateType: "https://spdx.dev/Document"}
	if len(types) > 0 && types[0] != a.PredicateType {
		return nil, nil
	}
	if statements {
		a.Statement = []byte(`{"a":1}`)
	}
	return []image.Attestation{a}, nil
}
func (f *fakeImages) RemovePlatforms(_ context.Context, _ string, list []ocispec.Platform, _ bool, _ func(string) []string) (out []image.Removed, err error) {
	for _, p := range list {
		out = append(out, image.Removed{Deleted: "sha256:" + p.Architecture})
	}
	return out, nil
}
func (f *fakeImages) Prune(ctx context.Context, filter func(image.Image) bool, _ func(string) []string) (out []image.Removed, freed int64, err error) {
	images, _ := f.List(ctx)
	for _, img := range images {
		if filter(img) {
			out = append(out, image.Removed{Deleted: img.ID})
			freed += img.Size
		}
	}
	return out, freed, nil
}

type fakeVolumes struct {
	mu    sync.Mutex
	all   map[string]volume.Volume
	users map[string][]string
	// removed is a volume that goes between the list and the look at its size.
	removed string
}

var _ Volumes = (*fakeVolumes)(nil)

func (f *fakeVolumes) Create(_ context.Context, v volume.Volume) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v.Name == "" {
		v.Name = "random"
	}
	v.Mountpoint, v.Created = "/var/lib/sampan/volumes/"+v.Name+"/_data", time.Now()
	f.all[v.Name] = v
	return v, nil
}
func (f *fakeVolumes) Get(name string) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.all[name]
	if !ok {
		return v, fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	return v, nil
}
func (f *fakeVolumes) List() (out []volume.Volume) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.all {
		out = append(out, v)
	}
	return out
}
func (f *fakeVolumes) Remove(_ context.Context, name string, force bool) error {
	if _, err := f.Get(name); err != nil && !force {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.users[name]) > 0 {
		return fault.New(fault.Conflict, "remove %s: volume is in use - %v", name, f.users[name])
	}
	delete(f.all, name)
	return nil
}
func (f *fakeVolumes) Users(name string) []string { return f.users[name] }
func (f *fakeVolumes) Size(name string) (int64, error) {
	if f.removed == name {
		return 0, fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	return 100, nil
}

type fakeNetworks struct {
	mu       sync.Mutex
	all      map[string]network.Network
	defaults map[string]map[string]string
}

var _ Networks = (*fakeNetworks)(nil)

func (f *fakeNetworks) Create(_ context.Context, spec network.Spec) (network.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if spec.Driver != "bridge" {
		return network.Network{}, fault.New(fault.NotFound, "could not find plugin %s in v1 plugin registry: plugin not found", spec.Driver)
	}
	n := network.Network{ID: digest.FromString(spec.Name).Encoded(), Created: time.Now(), Scope: network.ScopeLocal, Spec: spec, Subnets: spec.IPAM}
	f.all[n.ID] = n
	return n, nil
}
func (f *fakeNetworks) Get(ref string) (network.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[ref], nil
}
func (f *fakeNetworks) Remove(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.all[id].Members) > 0 {
		return fault.New(fault.Conflict, "error while removing network: network %s has active endpoints", f.all[id].Spec.Name)
	}
	delete(f.all, id)
	return nil
}
func (f *fakeNetworks) List() (out []network.Network) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.all {
		out = append(out, n)
	}
	return out
}

func (f *fakeNetworks) Usage(_ context.Context, id string) map[netip.Prefix]network.Usage {
	out := map[netip.Prefix]network.Usage{}
	for _, c := range f.all[id].Subnets {
		out[c.Subnet] = network.Usage{InUse: 3, Available: 253}
	}
	return out
}

func (f *fakeNetworks) DefaultOptions(driver string) map[string]string { return f.defaults[driver] }
