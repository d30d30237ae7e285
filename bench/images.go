package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// The image whose load and pull are measured: of about 500 MB, in layers as a distribution's packages and a program with
// its libraries would make them, most files small and most bytes in large ones.
const (
	bigImage    = "bench/big:1"
	bigLayers   = 5
	bigLayer    = 100 << 20
	largeFile   = 8 << 20
	smallFile   = 24 << 10 // on average
	filesPerDir = 40
)

// bigArchive writes the image as `docker save` writes it, layers not compressed, and returns the path.
func bigArchive(dir string) (string, error) {
	path := filepath.Join(dir, "big.tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	add := func(name string, b []byte) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		_, err := out.Write(b)
		return err
	}
	sum := func(b []byte) string {
		s := sha256.Sum256(b)
		return hex.EncodeToString(s[:])
	}
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	config := struct {
		Architecture string         `json:"architecture"`
		OS           string         `json:"os"`
		Config       map[string]any `json:"config"`
		RootFS       rootfs         `json:"rootfs"`
	}{runtime.GOARCH, "linux", map[string]any{}, rootfs{Type: "layers"}}
	manifest := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{RepoTags: []string{bigImage}}
	for n := range bigLayers {
		b, err := bigLayerTar(uint64(n))
		if err != nil {
			return "", err
		}
		digest := sum(b)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:"+digest)
		manifest.Layers = append(manifest.Layers, digest+"/layer.tar")
		if err := add(digest+"/layer.tar", b); err != nil {
			return "", err
		}
	}
	c, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	manifest.Config = sum(c) + ".json"
	m, err := json.Marshal([]any{manifest})
	if err != nil {
		return "", err
	}
	if err := add(manifest.Config, c); err != nil {
		return "", err
	}
	if err := add("manifest.json", m); err != nil {
		return "", err
	}
	if err := out.Close(); err != nil {
		return "", err
	}
	return path, f.Close()
}

// bigLayerTar is one layer: a third of its bytes in small files, the rest in large ones. They compress to about 40 %, as
// programs do.
func bigLayerTar(n uint64) ([]byte, error) {
	r := rand.New(rand.NewPCG(n, 7))
	var b bytes.Buffer
	b.Grow(bigLayer + bigLayer/8)
	t := tar.NewWriter(&b)
	root := fmt.Sprintf("usr/lib/layer%d", n)
	folder := func(name string) error {
		return t.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755})
	}
	for _, d := range []string{"usr", "usr/lib", root} {
		if err := folder(d); err != nil {
			return nil, err
		}
	}
	dir := root
	for i := 0; b.Len() < bigLayer; i++ {
		size := 1 + r.IntN(2*smallFile)
		if b.Len() > bigLayer/3 {
			size = largeFile
		} else if i%filesPerDir == 0 {
			dir = fmt.Sprintf("%s/%d", root, i)
			if err := folder(dir); err != nil {
				return nil, err
			}
		}
		if err := t.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/%d", dir, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}); err != nil {
			return nil, err
		}
		if _, err := io.CopyN(t, newProse(r), int64(size)); err != nil {
			return nil, err
		}
	}
	err := t.Close()
	return b.Bytes(), err
}

// prose is an endless stream that compresses about as programs do: words that come again, and noise.
type prose struct {
	r     *rand.Rand
	words [][]byte
	left  []byte
}

func newProse(r *rand.Rand) *prose {
	p := &prose{r: r}
	for range 512 {
		w := make([]byte, 4+r.IntN(24))
		for i := range w {
			w[i] = byte(r.Uint32())
		}
		p.words = append(p.words, w)
	}
	return p
}

// Read implements io.Reader.
func (p *prose) Read(b []byte) (int, error) {
	for n := 0; n < len(b); {
		if len(p.left) == 0 {
			p.left = p.words[p.r.IntN(len(p.words))]
			if p.r.IntN(5) == 0 {
				p.left = []byte{byte(p.r.Uint32()), byte(p.r.Uint32()), byte(p.r.Uint32()), byte(p.r.Uint32())}
			}
		}
		m := copy(b[n:], p.left)
		p.left, n = p.left[m:], n+m
	}
	return len(b), nil
}

// loadBig loads the image from a file.
func loadBig(ctx context.Context, l *lab) (float64, error) {
	path, err := bigArchive(l.tmp)
	if err != nil {
		return 0, err
	}
	return l.withoutBig(ctx, func() error {
		_, err := l.first().Docker(ctx, "load", "-i", path)
		return err
	})
}

// pullBig pulls the image from a registry in this process, layers compressed with gzip.
func pullBig(ctx context.Context, l *lab) (float64, error) {
	path, err := bigArchive(l.tmp)
	if err != nil {
		return 0, err
	}
	if l.registry == nil {
		if l.registry, err = l.StartRegistry(); err != nil {
			return 0, err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		if l.pushed, err = l.registry.Push(ctx, b, bigImage); err != nil {
			return 0, err
		}
	}
	return l.withoutBig(ctx, func() error {
		_, err := l.first().Docker(ctx, "pull", "-q", l.pushed)
		return err
	})
}

// withoutBig times f on a host that has nothing of the image, and nothing to write out.
func (l *lab) withoutBig(ctx context.Context, f func() error) (float64, error) {
	unix.Sync()
	h := l.first()
	v, err := l.burning(f)
	if err != nil {
		return 0, err
	}
	ids, err := h.Docker(ctx, "images", "-q", bigImage)
	if err == nil && ids == "" {
		ids = l.pushed
	}
	if err == nil {
		_, err = h.Docker(ctx, "rmi", "-f", ids)
	}
	return v, err
}
