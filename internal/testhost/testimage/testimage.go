// Package testimage makes images and a registry for tests, the demo and the bench, without any network: images FROM
// scratch out of static binaries and files, and a registry in this process that can be told to misbehave. It knows
// nothing of the engine: what it makes is what any builder or registry would hand out.
package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Spec describes an image.
type Spec struct {
	// Tags are its names, such as "shop/order:1". Without one it is loaded as a dangling image.
	Tags []string
	// Files are the files of its only layer by absolute path; with Layers, those of the lowest.
	Files map[string]File
	// Layers are further layers, from the second lowest up.
	Layers []map[string]File
	// Config is its run configuration.
	Config ocispec.ImageConfig
	// Health is its health check, which is Docker's addition to the OCI config.
	Health *Health
	// Architecture other than this machine's.
	Architecture string
	// Created is its time; zero: the start of 1970, so that the same Spec gives the same image.
	Created time.Time
}

// Health is a health check as it stands in an image's config; Test is {"CMD", …}.
type Health struct {
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
}

// runConfig is an image's run configuration with Docker's addition.
type runConfig struct {
	ocispec.ImageConfig
	Healthcheck *Health `json:",omitempty"`
}

// File is one file of an image. At most one of HostPath, Symlink, Hardlink, Dir and Whiteout is set; without, Data is
// its content.
type File struct {
	Data     []byte
	HostPath string // copy of this file of the machine
	Symlink  string // symbolic link to this
	Hardlink string // another name of this file, an absolute path in the image that sorts before
	Dir      bool   // a folder; parents of files are made without being named
	Opaque   bool   // a folder that hides what the layers below have in it
	Whiteout bool   // the layers below have this no longer
	Mode     int64  // permission bits with setuid and sticky; 0: 0644, 0755 for folders, HostPath's own
	UID, GID int
	Xattrs   map[string]string
	Sparse   int64 // size of a file that is one hole
}

// Executable returns the file of this machine as one to be executed.
func Executable(hostPath string) File { return File{HostPath: hostPath, Mode: 0o755} }

// Text returns a file with the given content.
func Text(s string) File { return File{Data: []byte(s)} }

// Build returns the image as an archive that `docker load` and the engine take. The same Spec gives the same bytes.
func Build(ctx context.Context, spec Spec) ([]byte, error) {
	return BuildAll(ctx, spec)
}

// BuildAll returns several images as one archive.
func BuildAll(ctx context.Context, specs ...Spec) ([]byte, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var (
		manifest []entry
		files    = map[string][]byte{}
	)
	for _, spec := range specs {
		layers, config, err := blobs(ctx, spec)
		if err != nil {
			return nil, err
		}
		e := entry{RepoTags: spec.Tags}
		for _, l := range layers {
			name := hexSum(l) + "/layer.tar"
			files[name] = l
			e.Layers = append(e.Layers, name)
		}
		e.Config = hexSum(config) + ".json"
		files[e.Config] = config
		manifest = append(manifest, e)
	}
	m, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	files["manifest.json"] = m
	return tarOf(files)
}

// blobs are an image's layers, as plain tars, and its config.
func blobs(ctx context.Context, spec Spec) (layers [][]byte, config []byte, err error) {
	all := append([]map[string]File{spec.Files}, spec.Layers...)
	created := spec.Created
	if created.IsZero() {
		created = time.Unix(0, 0).UTC()
	}
	c := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   spec.Config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	if spec.Architecture != "" {
		c.Architecture = spec.Architecture
	}
	for i, files := range all {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if len(files) == 0 && i == 0 && len(all) == 1 {
			break
		}
		l, err := layer(files)
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, l)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
		c.History = append(c.History, ocispec.History{Created: &created, CreatedBy: "testimage"})
	}
	config, err = json.Marshal(struct {
		ocispec.Image
		Config runConfig `json:"config"`
	}{c, runConfig{spec.Config, spec.Health}})
	return layers, config, err
}

// layer writes files as the tar of a layer.
func layer(files map[string]File) ([]byte, error) {
	var b bytes.Buffer
	tw := &layerWriter{Writer: tar.NewWriter(&b), raw: &b}
	dirs := map[string]bool{"/": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		if t, ok := files[f.Hardlink]; ok && f.Hardlink != "" {
			// A link's entry names the owner and mode of what it links to, and extraction applies them.
			f.Mode, f.UID, f.GID, f.Xattrs = t.Mode, t.UID, t.GID, t.Xattrs
		}
		name = path.Clean("/" + name)
		if err := parents(tw, dirs, files, path.Dir(name)); err != nil {
			return nil, err
		}
		if f.Dir || f.Opaque {
			if dirs[name] {
				continue
			}
			dirs[name] = true
		}
		if err := f.write(tw, name); err != nil {
			return nil, fmt.Errorf("image file %s: %w", name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// layerWriter is a tar.Writer with a way round it.
type layerWriter struct {
	*tar.Writer
	raw *bytes.Buffer
}

func parents(tw *layerWriter, dirs map[string]bool, files map[string]File, dir string) error {
	if dirs[dir] {
		return nil
	}
	if err := parents(tw, dirs, files, path.Dir(dir)); err != nil {
		return err
	}
	dirs[dir] = true
	f := files[dir]
	f.Dir = true
	return f.write(tw, dir)
}

func (f File) write(tw *layerWriter, name string) error {
	h := &tar.Header{
		Name: strings.TrimPrefix(name, "/"), Typeflag: tar.TypeReg, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}
	for k, v := range f.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	data := f.Data
	switch {
	case f.Whiteout:
		h.Name = strings.TrimPrefix(path.Join(path.Dir(name), ".wh."+path.Base(name)), "/")
	case f.Dir || f.Opaque:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if h.Mode == 0 {
			h.Mode = 0o755
		}
	case f.Symlink != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Symlink, 0o777
	case f.Hardlink != "":
		h.Typeflag, h.Linkname = tar.TypeLink, strings.TrimPrefix(f.Hardlink, "/")
	case f.Sparse > 0:
		return writeSparse(tw, h, f.Sparse)
	case f.HostPath != "":
		var err error
		if data, err = os.ReadFile(f.HostPath); err != nil {
			return err
		}
		if h.Mode == 0 {
			st, err := os.Stat(f.HostPath)
			if err != nil {
				return err
			}
			h.Mode = int64(st.Mode().Perm())
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(data))
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	if f.Opaque {
		return tw.WriteHeader(&tar.Header{Name: h.Name + ".wh..wh..opq", Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(0, 0)})
	}
	return nil
}

func tarOf(files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// GoBinary builds the Go package pkg (an import path or ./folder, seen from dir) as a static binary, stripped, into
// outDir, and returns its path. Nothing is built again that the build cache has.
func GoBinary(ctx context.Context, dir, pkg, outDir string) (string, error) {
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return "", err
	}
	name := path.Base(strings.TrimSuffix(filepath.ToSlash(pkg), "/"))
	out, err := filepath.Abs(filepath.Join(outDir, strings.TrimSuffix(name, ".go")))
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w -buildid=", "-o", out, pkg) // compiled as make build does, so from its cache
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w: %s", pkg, err, bytes.TrimSpace(b))
	}
	return out, nil
}

// GoProgram is GoBinary for a program given as the text of its only file, which may import the standard library only.
func GoProgram(ctx context.Context, source, name, outDir string) (string, error) {
	if name != filepath.Base(name) || name == "" {
		return "", errors.New("the program's name must be a plain file name")
	}
	dir, err := os.MkdirTemp("", "testimage-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module "+name+"\n\ngo 1.26\n"), 0o644); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		return "", err
	}
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return "", err
	}
	out, err := filepath.Abs(filepath.Join(outDir, name))
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build of %s: %w: %s", name, err, bytes.TrimSpace(b))
	}
	return out, nil
}

// writeSparse writes a file that is one hole in the GNU format 1.0, which archive/tar reads but cannot write: the PAX
// records say so and the content starts with the map of what is no hole, which is nothing.
func writeSparse(tw *layerWriter, h *tar.Header, size int64) error {
	records := ""
	for _, kv := range [][2]string{
		{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", h.Name}, {"GNU.sparse.realsize", fmt.Sprint(size)},
	} {
		records += paxRecord(kv[0], kv[1])
	}
	var raw bytes.Buffer
	x := tar.NewWriter(&raw)
	if err := x.WriteHeader(&tar.Header{Name: "PaxHeaders.0/sparse", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(records)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if _, err := io.WriteString(x, records); err != nil {
		return err
	}
	if err := x.Flush(); err != nil {
		return err
	}
	head := raw.Bytes()
	head[156] = 'x' // a PAX header for the next file
	fixChecksum(head[:512])
	mode := h.Mode
	if mode == 0 {
		mode = 0o644
	}
	body := make([]byte, 512)
	copy(body, "0\n") // the map of data: no pieces
	if err := x.WriteHeader(&tar.Header{Name: "GNUSparseFile.0/sparse", Typeflag: tar.TypeReg, Mode: mode, Uid: h.Uid, Gid: h.Gid, Size: 512, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if _, err := x.Write(body); err != nil {
		return err
	}
	if err := x.Flush(); err != nil {
		return err
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := tw.raw.Write(raw.Bytes())
	return err
}

func paxRecord(k, v string) string {
	const pad = 3 // space, equals, newline
	n := len(k) + len(v) + pad
	n += len(fmt.Sprint(n))
	r := fmt.Sprintf("%d %s=%s\n", n, k, v)
	if len(r) != n {
		r = fmt.Sprintf("%d %s=%s\n", len(r), k, v)
	}
	return r
}

func fixChecksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}
