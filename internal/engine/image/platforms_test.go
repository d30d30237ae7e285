package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestSeveralPlatforms: an image for several platforms is kept, saved, loaded, tagged and pushed as a whole.
func TestSeveralPlatforms(t *testing.T) {
	r := registry(t)
	builder := open(t)
	var list []ocispec.Descriptor
	for _, arch := range []string{"s390x", runtime.GOARCH} {
		ref := r.Host + "/multi:" + arch
		img := load(t, builder, testimage.Spec{Tags: []string{ref}, Architecture: arch, Files: map[string]testimage.File{"/arch": testimage.Text(arch)}})[0]
		if err := builder.Push(t.Context(), ref, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
		d := img.Target
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		list = append(list, d)
	}
	putIndex(t, r, "multi", "all", list...)
	ref := r.Host + "/multi:all"

	s := open(t)
	for _, platform := range []string{"", "linux/s390x"} {
		if _, err := s.Pull(t.Context(), ref, platform, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	img, err := s.Get(t.Context(), ref)
	if err != nil || img.Architecture != runtime.GOARCH || len(img.Manifests) != 2 || !img.whole() {
		t.Fatalf("%+v %v", img, err)
	}
	var archive bytes.Buffer
	if err := s.Save(t.Context(), []string{ref}, &archive); err != nil {
		t.Fatal(err)
	}

	other := open(t)
	loaded, err := other.Load(t.Context(), bytes.NewReader(archive.Bytes()), nil)
	if err != nil || len(loaded) != 1 || loaded[0].ID != img.ID || !loaded[0].whole() || !slices.Contains(loaded[0].RepoTags, ref) {
		t.Fatalf("%+v %v", loaded, err)
	}
	if err := other.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := r.Host + "/again:1"
	if err := other.Tag(t.Context(), ref, again); err != nil {
		t.Fatal(err)
	}
	if err := other.Push(t.Context(), again, Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	desc, platforms, err := other.Resolve(t.Context(), again, Auth{})
	if err != nil || desc.Digest.String() != img.ID || len(platforms) != 2 {
		t.Errorf("pushed: %v %v %v", desc, platforms, err)
	}
	// Removed by a name with digest, the names of that repository go and no other.
	removed, err := other.Remove(t.Context(), r.Host+"/again@"+img.ID, false, true, nil)
	if err != nil || len(removed) == 0 || slices.ContainsFunc(removed, func(x Removed) bool { return x.Deleted != "" }) {
		t.Errorf("%+v %v", removed, err)
	}
	if _, err := other.Get(t.Context(), again); !fault.Is(err, fault.NotFound) {
		t.Errorf("still named %s: %v", again, err)
	}
	if _, err := other.Get(t.Context(), ref); err != nil {
		t.Error(err)
	}

	// Where a platform is missing, the one that is there is pushed.
	part := open(t)
	if _, err := part.Pull(t.Context(), ref, "", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	half := r.Host + "/half:1"
	if err := errors.Join(part.Tag(t.Context(), ref, half), part.Push(t.Context(), half, Auth{}, nil)); err != nil {
		t.Fatal(err)
	}
	if desc, _, err := part.Resolve(t.Context(), half, Auth{}); err != nil || desc.Digest != list[1].Digest {
		t.Errorf("pushed of a part: %v %v", desc, err)
	}
}

// TestAttestations: statements about an image are kept with it, found by their kind, and not taken for platforms.
func TestAttestations(t *testing.T) {
	s := open(t)
	one := load(t, s, testimage.Spec{Tags: []string{"one:1"}, Files: map[string]testimage.File{"/a": testimage.Text("a")}})[0]
	ctx, done, err := s.withLease(s.ns(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	blob := func(mediaType string, v any) ocispec.Descriptor {
		t.Helper()
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.writeBlob(ctx, mediaType, b)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var statements []ocispec.Descriptor
	for _, kind := range []string{"https://slsa.dev/provenance/v1", "https://spdx.dev/Document"} {
		d := blob("application/vnd.in-toto+json", map[string]string{"predicateType": kind})
		d.Annotations = map[string]string{annotationPredicate: kind}
		statements = append(statements, d)
	}
	about := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: blob(ocispec.MediaTypeImageConfig, map[string]string{}), Layers: statements})
	about.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	about.Annotations = map[string]string{annotationRefType: attestationRefType, annotationRefDigest: one.Target.Digest.String()}
	manifest := one.Target
	manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	index := blob(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest, about}})
	img, err := s.adopt(ctx, index, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.setNames(ctx, img.ID, index, "docker.io/library/attested:1"); err != nil {
		t.Fatal(err)
	}
	done()
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}

	got, err := s.Attestations(t.Context(), "attested:1", nil, nil, false)
	if err != nil || len(got) != 2 || got[0].Statement != nil {
		t.Errorf("%+v %v", got, err)
	}
	got, err = s.Attestations(t.Context(), "attested:1", nil, []string{"https://spdx.dev/Document"}, true)
	if err != nil || len(got) != 1 || !strings.Contains(string(got[0].Statement), "spdx") {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := s.Attestations(t.Context(), "attested:1", &ocispec.Platform{OS: "linux", Architecture: "riscv64"}, nil, false); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a platform there is not: %v", err)
	}
	if got, err := s.Attestations(t.Context(), "one:1", nil, nil, false); err != nil || got != nil {
		t.Errorf("of an image without: %+v %v", got, err)
	}
	if full, err := s.Get(t.Context(), "attested:1"); err != nil || len(full.Manifests) != 2 || full.Manifests[1].Kind != KindAttestation || !full.whole() {
		t.Errorf("%+v %v", full.Manifests, err)
	}
}

// TestOldIDs: what knew an image by the digest of its config still finds it.
func TestOldIDs(t *testing.T) {
	s := open(t)
	img := load(t, s, testimage.Spec{Tags: []string{"one:1"}, Files: map[string]testimage.File{"/a": testimage.Text("a")}})[0]
	if img.ConfigID == img.ID || img.ConfigID == "" {
		t.Fatalf("%+v", img)
	}
	for _, ref := range []string{img.ConfigID, strings.TrimPrefix(img.ConfigID, "sha256:")} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.ID != img.ID {
			t.Errorf("%s: %s %v", ref, got.ID, err)
		}
	}
	rootfsOf(t, s, "c", img.ConfigID)
}
