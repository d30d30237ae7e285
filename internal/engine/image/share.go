package image

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Namespace and Snapshotter are the names by which what is in the store is found in its database by those it is shared
// with.
const (
	Namespace   = namespace
	Snapshotter = snapshotter
)

// Shared is the inside of a store for the program that builds images: it keeps its layers and blobs here, under leases of
// its own, beside those of images. So what an image has is not copied to build on it, and what was built is an image
// without being sent anywhere.
type Shared struct {
	Content   content.Store
	Snapshots snapshots.Snapshotter
	Leases    leases.Manager // a synchronous delete collects garbage
	Images    images.Store   // names; creating or updating one makes an image of its target
}

// Share returns the inside of the store. It is used under Namespace.
// made, if not nil, is told of every image that is made or named, with the name as users write it, "" for none.
func (s *Store) Share(made func(img Image, name string)) Shared {
	return Shared{Content: s.content(), Snapshots: s.snapshots(), Leases: collecting{s.leases(), s}, Images: sharedImages{s, made}}
}

// collecting is a lease manager whose synchronous deletes take what the lease held.
type collecting struct {
	leases.Manager
	store *Store
}

// Delete gives a lease up.
func (c collecting) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if err := c.Manager.Delete(ctx, l, opts...); err != nil {
		return err
	}
	if !o.Synchronous {
		return nil
	}
	return c.store.GC(ctx)
}

// sharedImages are the store's images as containerd's libraries want them.
type sharedImages struct {
	s    *Store
	made func(Image, string)
}

// Get finds an image by its full name. As FROM may also have the ID of an image, or the beginning of one, which a client
// completes like a name, docker.io/library/0123abcd:latest is that.
func (i sharedImages) Get(ctx context.Context, name string) (images.Image, error) {
	img, err := i.s.records().Get(i.s.ns(ctx), name)
	if !errdefs.IsNotFound(err) {
		return img, err
	}
	id, ok := strings.CutSuffix(strings.TrimPrefix(name, "docker.io/library/"), ":latest")
	if !ok || !hexPrefix.MatchString(id) {
		return img, err
	}
	found, _, ferr := i.s.find(id)
	if ferr != nil {
		return img, err
	}
	return images.Image{Name: name, Target: found.Target, CreatedAt: found.Created}, nil
}

// List returns the names that images have.
func (i sharedImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return i.s.records().List(i.s.ns(ctx), filters...)
}

// Create makes an image of blobs that are in the store and gives it the name. ctx has a lease that holds them.
func (i sharedImages) Create(ctx context.Context, img images.Image) (images.Image, error) {
	return i.Update(ctx, img)
}

// Update is Create: a name that is taken moves. A name that begins with DanglingPrefix gives none.
func (i sharedImages) Update(ctx context.Context, img images.Image, _ ...string) (images.Image, error) {
	ctx, done, err := i.s.holdLease(i.s.ns(ctx))
	if err != nil {
		return img, err
	}
	defer done()
	var names []string
	if !strings.HasPrefix(img.Name, danglingPrefix) {
		named, err := nameForWriting(img.Name)
		if err != nil {
			return img, err
		}
		names = []string{named.String()}
	}
	target, err := pick(ctx, i.s.content(), img.Target)
	if err != nil {
		if err == errNoPlatform { //nolint:errorlint // it is returned as it is
			err = fault.New(fault.InvalidArgument, "what was built is no image: it can be pushed or written to a file (--output type=oci,dest=FILE), not kept here")
		}
		return img, err
	}
	made, err := i.s.adopt(ctx, target, nil)
	if err != nil {
		return img, err
	}
	whole, err := i.s.setNames(ctx, made.ID, target, names...)
	if err != nil || i.made == nil {
		return img, err
	}
	name := ""
	if len(names) > 0 {
		name = Familiar(names[0])
	}
	i.made(whole, name)
	return img, nil
}

// Delete is not for those the store is shared with.
func (i sharedImages) Delete(context.Context, string, ...images.DeleteOpt) error {
	return errdefs.ErrNotImplemented
}

// holdLease is withLease for a context that may have a lease of its caller already.
func (s *Store) holdLease(ctx context.Context) (context.Context, func(), error) {
	if id, ok := leases.FromContext(ctx); ok {
		return leases.WithLease(ctx, id), func() {}, nil
	}
	return s.withLease(ctx)
}

// DanglingPrefix begins the name by which an image is made that gets none.
const DanglingPrefix = danglingPrefix

// RegistryHosts returns how to reach the registries of images, for a program that speaks to them itself: which have
// mirrors and which may be insecure. The credentials are the caller's business.
func RegistryHosts(cfg Config) (docker.RegistryHosts, error) {
	r, err := newRegistries(cfg)
	if err != nil {
		return nil, err
	}
	return func(domain string) ([]docker.RegistryHost, error) {
		named, err := reference.ParseNormalizedNamed(domain + "/any")
		if err != nil {
			return nil, fault.New(fault.InvalidArgument, "registry %q: %w", domain, err)
		}
		return r.hostsOf(context.Background(), named, false, nil), nil
	}, nil
}
