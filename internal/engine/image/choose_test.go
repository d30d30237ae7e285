package image

import (
	"bytes"
	"runtime"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestPlatformsAreChosen at save, load and push: what was asked for is there afterwards, and nothing else; what is not to
// be had is an error. Whole, a save of what was loaded is the archive again.
func TestPlatformsAreChosen(t *testing.T) {
	r := registry(t)
	builder := open(t)
	var list []ocispec.Descriptor
	for _, arch := range []string{"s390x", runtime.GOARCH, "riscv64"} {
		tag := r.Host + "/team/multi:" + arch
		img := load(t, builder, testimage.Spec{Tags: []string{tag}, Architecture: arch, Files: map[string]testimage.File{"/common": testimage.Text("the same\n")},
			Layers: []map[string]testimage.File{{"/arch": testimage.Text(arch)}}})[0]
		if err := builder.Push(t.Context(), tag, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
		d := img.Manifest
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		list = append(list, d)
	}
	putIndex(t, r, "team/multi", "1", list...)
	ref := r.Host + "/team/multi:1"
	s := open(t)
	for _, p := range []string{"", "linux/s390x"} {
		if _, err := s.Pull(t.Context(), ref, p, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	z, v := ocispec.Platform{OS: "linux", Architecture: "s390x"}, ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	save := func(s *Store, only ...ocispec.Platform) []byte {
		t.Helper()
		var b bytes.Buffer
		if err := s.Save(t.Context(), []string{ref}, &b, only...); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	here := func(s *Store, want ...string) {
		t.Helper()
		for _, arch := range []string{"s390x", runtime.GOARCH, "riscv64"} {
			img, err := s.ForPlatform(t.Context(), ref, "linux/"+arch)
			found, wanted := err == nil && img.Architecture == arch, false
			for _, w := range want {
				wanted = wanted || w == arch
			}
			if found != wanted {
				t.Errorf("%s is here: %v, %v", arch, found, err)
			}
		}
	}
	here(s, "s390x", runtime.GOARCH)
	whole := save(s)
	if !bytes.Equal(whole, save(s)) {
		t.Error("two saves differ")
	}
	other := open(t)
	if _, err := other.Load(t.Context(), bytes.NewReader(whole), nil); err != nil {
		t.Fatal(err)
	}
	here(other, "s390x", runtime.GOARCH)
	if !bytes.Equal(whole, save(other)) {
		t.Error("a save of what was loaded differs from the archive")
	}
	one := open(t)
	if _, err := one.Load(t.Context(), bytes.NewReader(save(s, z)), nil); err != nil {
		t.Fatal(err)
	}
	here(one, "s390x")
	one = open(t)
	if _, err := one.Load(t.Context(), bytes.NewReader(whole), nil, z); err != nil {
		t.Fatal(err)
	}
	here(one, "s390x")
	_, err := open(t).Load(t.Context(), bytes.NewReader(whole), nil, v)
	wantKind(t, err, fault.NotFound, "linux/riscv64")
	wantKind(t, s.Save(t.Context(), []string{ref}, &bytes.Buffer{}, v), fault.NotFound, "does not provide the specified platform (linux/riscv64)")
	target := r.Host + "/team/copy:1"
	if err := s.Tag(t.Context(), ref, target); err != nil {
		t.Fatal(err)
	}
	if err := s.Push(t.Context(), target, Auth{}, nil, z); err != nil {
		t.Fatal(err)
	}
	if desc, all, err := s.Resolve(t.Context(), target, Auth{}); err != nil || len(all) != 1 || desc.Digest != list[0].Digest {
		t.Errorf("pushed was %s %v, %v", desc.Digest, all, err)
	}
}
