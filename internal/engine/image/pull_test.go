package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

const big = 300 << 10 // blobs from here on are layers that faults apply to

func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func registry(t testing.TB) *testimage.Server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r, err := testimage.Registry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// pushed puts an image with two big layers into the registry and returns its name and ID.
func pushed(t testing.TB, r *testimage.Server) (ref, id string) {
	t.Helper()
	s := open(t)
	ref = r.Host + "/team/app:1"
	img := load(t, s, testimage.Spec{
		Tags:   []string{ref},
		Files:  map[string]testimage.File{"/a": {Data: noise(2*big, 1)}},
		Layers: []map[string]testimage.File{{"/b": {Data: noise(3*big, 2)}}},
	})[0]
	if err := s.Push(t.Context(), ref, Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	r.Forget()
	return ref, img.ID
}

func TestPullShowsWhatDockerShows(t *testing.T) {
	r := registry(t)
	ref, id := pushed(t, r)
	s := open(t)
	var lines []string
	record := func(p Progress) { lines = append(lines, p.Status) }
	img, err := s.Pull(t.Context(), ref, "", Auth{}, record)
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != id {
		t.Errorf("ID %s, want %s", img.ID, id)
	}
	if len(img.RepoDigests) != 1 || !strings.HasPrefix(img.RepoDigests[0], r.Host+"/team/app@sha256:") {
		t.Errorf("RepoDigests %v", img.RepoDigests)
	}
	for _, want := range []string{"Pulling from team/app", "Pulling fs layer", "Downloading", "Download complete", "Extracting", "Pull complete",
		"Digest: " + img.Target.Digest.String(), "Status: Downloaded newer image for " + ref} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in %q", want, lines)
		}
	}
	lines = nil
	if _, err := s.Pull(t.Context(), ref, "", Auth{}, record); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Already exists", "Status: Image is up to date for " + ref} {
		if !slices.Contains(lines, want) {
			t.Errorf("second pull: no line %q in %q", want, lines)
		}
	}
	// By digest, and what it is called then.
	byDigest, err := s.Pull(t.Context(), img.RepoDigests[0], "", Auth{}, nil)
	if err != nil || byDigest.ID != id {
		t.Errorf("pull by digest: %s, %v", byDigest.ID, err)
	}
	got := rootfsOf(t, s, "c", id)
	if b := read(t, filepath.Join(got.Path, "b")); b != string(noise(3*big, 2)) {
		t.Error("the file of the second layer is not what was pushed")
	}
}

func TestPullThroughFaults(t *testing.T) {
	for name, c := range map[string]struct {
		faults testimage.Faults
		auth   Auth
		check  func(t *testing.T, seen []testimage.Request)
	}{
		"token for anybody": {faults: testimage.Faults{Bearer: true}, check: func(t *testing.T, seen []testimage.Request) {
			if !slices.ContainsFunc(seen, func(r testimage.Request) bool { return strings.HasPrefix(r.Authorization, "Bearer ") }) {
				t.Error("no request with a token")
			}
		}},
		"token for a user": {faults: testimage.Faults{Bearer: true, User: "u", Password: "p"}, auth: Auth{Username: "u", Password: "p"}},
		"basic":            {faults: testimage.Faults{Basic: true, User: "u", Password: "p"}, auth: Auth{Username: "u", Password: "p"}},
		"redirect": {faults: testimage.Faults{Bearer: true, Redirect: true}, check: func(t *testing.T, seen []testimage.Request) {
			for _, r := range seen {
				if r.Redirected && r.Authorization != "" {
					t.Error("credentials went to the host the registry redirected to")
				}
			}
			if !slices.ContainsFunc(seen, func(r testimage.Request) bool { return r.Redirected }) {
				t.Error("no request was redirected")
			}
		}},
		"cut":                          {faults: testimage.Faults{Cut: 3, CutFrom: big}, check: resumed},
		"cut, redirected, with tokens": {faults: testimage.Faults{Cut: 2, CutFrom: big, Redirect: true, Bearer: true}, check: resumed},
		"cut, no ranges":               {faults: testimage.Faults{Cut: 1, CutFrom: big, NoRange: true}},
		"cut, ranges refused":          {faults: testimage.Faults{Cut: 1, CutFrom: big, RefuseRange: true}, check: resumed},
	} {
		t.Run(name, func(t *testing.T) {
			r := registry(t)
			ref, id := pushed(t, r)
			r.Set(c.faults)
			s := open(t)
			img, err := s.Pull(t.Context(), ref, "", c.auth, nil)
			if err != nil {
				t.Fatal(err)
			}
			if img.ID != id {
				t.Errorf("ID %s, want %s", img.ID, id)
			}
			if c.check != nil {
				c.check(t, r.Requests())
			}
		})
	}
}

// resumed checks that a download went on in the middle.
func resumed(t *testing.T, seen []testimage.Request) {
	for _, r := range seen {
		if strings.HasPrefix(r.Range, "bytes=") && !strings.HasPrefix(r.Range, "bytes=0-") {
			return
		}
	}
	t.Error("no request asked for the rest of a blob")
}

func TestPullErrorsSayWhatDockerSays(t *testing.T) {
	r := registry(t)
	ref, _ := pushed(t, r)
	s := open(t)
	pull := func(ref, platform string, auth Auth) error {
		_, err := s.Pull(t.Context(), ref, platform, auth, nil)
		return err
	}
	wantKind(t, pull(r.Host+"/team/app:2", "", Auth{}), fault.NotFound, "manifest for "+r.Host+"/team/app:2 not found: manifest unknown")
	wantKind(t, pull(r.Host+"/nobody/x:1", "", Auth{}), fault.NotFound, "not found")
	wantKind(t, pull("UPPER", "", Auth{}), fault.InvalidArgument, "invalid reference format")
	wantKind(t, pull(ref, "not/a/plat/form", Auth{}), fault.InvalidArgument, "platform")
	wantKind(t, pull(ref, "linux/s390x", Auth{}), fault.NotFound, "does not match the specified platform")
	r.Set(testimage.Faults{Bearer: true, User: "u", Password: "p"})
	wantKind(t, pull(ref, "", Auth{Username: "u", Password: "wrong"}), fault.NotFound, "pull access denied for "+r.Host+"/team/app, repository does not exist or may require 'docker login'")
	wantKind(t, pull(ref, "", Auth{}), fault.NotFound, "pull access denied")
	r.Set(testimage.Faults{Fail: 502})
	wantKind(t, pull(ref, "", Auth{}), fault.Unavailable, "registry "+r.Host)
	r.Close()
	wantKind(t, pull(ref, "", Auth{}), fault.Unavailable, "registry "+r.Host)
	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("images after failed pulls: %v", l)
	}
}

func TestPullOfWhatIsNoImage(t *testing.T) {
	r := registry(t)
	s := open(t)
	const digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	for _, c := range []struct{ mediaType, manifest, want string }{
		{ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + digest + `","size":2},"layers":[]}`,
			"unsupported media type application/vnd.cncf.helm.config.v1+json: " + r.Host + "/team/what:1 is not an image"},
		{"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`,
			`media type "application/vnd.docker.distribution.manifest.v1+prettyjws" is no longer supported: rebuild the image`},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+r.Host+"/v2/team/what/manifests/1", strings.NewReader(c.manifest))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", c.mediaType)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		_, err = s.Pull(t.Context(), r.Host+"/team/what:1", "", Auth{}, nil)
		wantKind(t, err, fault.InvalidArgument, c.want)
	}
}

func TestPullRefusesWrongBytes(t *testing.T) {
	r := registry(t)
	ref, _ := pushed(t, r)
	r.Set(testimage.Faults{Corrupt: 100, CorruptFrom: big})
	s := open(t)
	_, err := s.Pull(t.Context(), ref, "", Auth{}, nil)
	wantKind(t, err, fault.InvalidArgument, "filesystem layer verification failed for digest sha256:")
	if _, err := s.Get(t.Context(), ref); !fault.Is(err, fault.NotFound) {
		t.Errorf("the image is there: %v", err)
	}
	// Nothing of the bad bytes spoils a later pull.
	r.Set(testimage.Faults{})
	if _, err := s.Pull(t.Context(), ref, "", Auth{}, nil); err != nil {
		t.Error(err)
	}
}

func TestConcurrentPullsFetchABlobOnce(t *testing.T) {
	r := registry(t)
	ref, id := pushed(t, r)
	s := open(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if img, err := s.Pull(t.Context(), ref, "", Auth{}, nil); err != nil || img.ID != id {
				t.Errorf("%s, %v", img.ID, err)
			}
		})
	}
	wg.Wait()
	times := map[string]int{}
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") {
			times[q.Path]++
		}
	}
	for path, n := range times {
		if n > 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
}

func TestCancelledPullGoesOnLater(t *testing.T) {
	r := registry(t)
	ref, id := pushed(t, r)
	s := open(t)
	pullHalf(t, s, r, ref)
	if err := s.GC(t.Context()); err != nil { // keeps what the pull's lease still holds
		t.Fatal(err)
	}
	leases, err := s.leases().List(s.ns(t.Context()))
	if err != nil || len(leases) != 1 || leases[0].Labels["containerd.io/gc.expire"] == "" {
		t.Fatalf("leases %v, want the dead process' with an expiry: %v", leases, err)
	}
	r.Set(testimage.Faults{})
	r.Forget()
	img, err := s.Pull(t.Context(), ref, "", Auth{}, nil)
	if err != nil || img.ID != id {
		t.Fatalf("%s, %v", img.ID, err)
	}
	resumed(t, r.Requests())
	// What the first attempt held does not outlive the image.
	if _, err := s.Remove(t.Context(), ref, false, true, nil); err != nil || onDisk(t, s.cfg.Root) != 0 {
		t.Errorf("%d bytes are left of a removed image, %v", onDisk(t, s.cfg.Root), err)
	}
}

// pullHalf cancels a pull when some of a layer is there.
func pullHalf(t *testing.T, s *Store, r *testimage.Server, ref string) {
	t.Helper()
	end := pullHeld(t, s, r, ref)
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
}

// pullHeld begins a pull and waits until some of a layer is there; end cancels it.
func pullHeld(t *testing.T, s *Store, r *testimage.Server, ref string) (end func() error) {
	t.Helper()
	r.Set(testimage.Faults{Hold: make(chan struct{}), HoldFrom: big})
	ctx, cancel := context.WithCancel(t.Context())
	half := make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, "", Auth{}, func(p Progress) {
			if p.Status == "Downloading" && p.Current > 0 {
				once.Do(func() { close(half) })
			}
		})
		done <- err
	}()
	select {
	case <-half:
	case <-time.After(20 * time.Second):
		t.Fatal("no bytes came")
	}
	return func() error {
		cancel()
		return <-done
	}
}

// TestPruneWhileWorkEnds: loads, pulls and commits that end while somebody prunes are no error to him.
func TestPruneWhileWorkEnds(t *testing.T) {
	s := open(t)
	ended := make(chan error)
	const workers = 8
	for range workers {
		go func() {
			for range 60 {
				_, done, err := s.withLease(s.ns(t.Context()))
				if err != nil {
					ended <- err
					return
				}
				done()
			}
			ended <- nil
		}()
	}
	for left := workers; left > 0; {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			left--
		default:
			if _, err := s.dropInterrupted(s.ns(t.Context()), ""); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestPruneTakesWhatACancelledPullLeft and what the daemon before left of one, but nothing of a pull that goes on.
func TestPruneTakesWhatACancelledPullLeft(t *testing.T) {
	r := registry(t)
	ref, _ := pushed(t, r)
	root := tempRoot(t)
	s := openAt(t, Config{Root: root})
	end := pullHeld(t, s, r, ref)
	kept := onDisk(t, root)
	if kept == 0 {
		t.Fatal("nothing is there of a pull that has begun")
	}
	if _, freed, err := s.Prune(t.Context(), nil, nil); err != nil || freed != 0 || onDisk(t, root) < kept {
		t.Errorf("pruned of a pull that goes on: %d bytes, %d left of %d, %v", freed, onDisk(t, root), kept, err)
	}
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	if _, freed, err := s.Prune(t.Context(), nil, nil); err != nil || freed == 0 || onDisk(t, root) != 0 {
		t.Errorf("pruned %d bytes, %d left, %v", freed, onDisk(t, root), err)
	}
	pullHalf(t, s, r, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, Config{Root: root})
	if _, freed, err := s.Prune(t.Context(), nil, nil); err != nil || freed == 0 || onDisk(t, root) != 0 {
		t.Errorf("pruned %d bytes of the daemon before, %d left, %v", freed, onDisk(t, root), err)
	}
}

// onDisk is how many bytes of blobs, whole or in part, a store has.
func onDisk(t *testing.T, root string) (n int64) {
	t.Helper()
	for _, dir := range []string{"blobs", "ingest"} {
		err := filepath.WalkDir(filepath.Join(root, "content", dir), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				n += info.Size()
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return n
}

func TestPullFromAMirror(t *testing.T) {
	r := registry(t)
	s := open(t)
	// The mirror has it under the path that docker.io has it.
	img := load(t, s, plain(r.Host+"/library/mirrored:1"))[0]
	if err := s.Push(t.Context(), r.Host+"/library/mirrored:1", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	other := openAt(t, Config{Root: tempRoot(t), Mirrors: []string{"http://" + r.Host}})
	got, err := other.Pull(t.Context(), "mirrored:1", "", Auth{Username: "u", Password: "secret"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != img.ID || !slices.Equal(got.RepoTags, []string{"mirrored:1"}) {
		t.Errorf("%s %v", got.ID, got.RepoTags)
	}
	for _, q := range r.Requests() {
		if strings.HasPrefix(q.Authorization, "Basic") {
			t.Error("the mirror was shown docker.io's credentials")
		}
	}
}

func TestPush(t *testing.T) {
	r := registry(t)
	s := open(t)
	load(t, s, plain(r.Host+"/p/x:1", r.Host+"/p/x:2"))
	wantKind(t, s.Push(t.Context(), r.Host+"/p/y", Auth{}, nil), fault.NotFound, "An image does not exist locally with the tag: "+r.Host+"/p/y")
	r.Set(testimage.Faults{Bearer: true, User: "u", Password: "p"})
	wantKind(t, s.Push(t.Context(), r.Host+"/p/x:1", Auth{}, nil), fault.Forbidden, "push access denied for "+r.Host+"/p/x")
	var lines []string
	var aux []Pushed
	record := func(p Progress) {
		lines = append(lines, p.Status)
		if a, ok := p.Aux.(Pushed); ok {
			aux = append(aux, a)
		}
	}
	auth := Auth{Username: "u", Password: "p"}
	if err := s.Push(t.Context(), r.Host+"/p/x:1", auth, record); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The push refers to repository [" + r.Host + "/p/x]", "Preparing", "Pushed"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in %q", want, lines)
		}
	}
	if len(aux) != 1 || aux[0].Tag != "1" || !strings.HasPrefix(aux[0].Digest, "sha256:") {
		t.Errorf("aux %+v", aux)
	}
	lines = nil
	// Without a tag: all of them; the layers are there.
	if err := s.Push(t.Context(), r.Host+"/p/x", auth, record); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(lines, "Layer already exists") || len(aux) != 3 {
		t.Errorf("lines %q, aux %+v", lines, aux)
	}
	other := open(t)
	if _, err := other.Pull(t.Context(), r.Host+"/p/x:2", "", auth, nil); err != nil {
		t.Error(err)
	}
}

func TestInsecureRegistries(t *testing.T) {
	r, err := newRegistries(Config{Insecure: []string{"reg.example", "Other.example:5000", "10.1.0.0/16", "192.0.2.7", "fd00::/8"}})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"reg.example": true, "reg.example:80": true, "other.example:5000": true, "other.example:5001": false,
		"10.1.2.3": true, "10.1.2.3:5000": true, "10.2.0.1": false, "192.0.2.7:1": true, "192.0.2.8": false, "[fd00::1]:5000": true, "[2001:db8::1]:5000": false,
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true,
	} {
		if got := r.isInsecure(t.Context(), host); got != want {
			t.Errorf("%s: insecure %v, want %v", host, got, want)
		}
	}
	for _, bad := range []Config{{Insecure: []string{"http://x"}}, {Insecure: []string{""}}, {Mirrors: []string{"x"}}, {Mirrors: []string{"ftp://x"}}, {Mirrors: []string{"http://u:p@x"}}} {
		if _, err := newRegistries(bad); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

const crashRoot = "SAMPAN_IMAGE_TEST_CRASH_ROOT"

// TestCrashHelper is the process that TestCrashMidPull kills; by itself it does nothing.
func TestCrashHelper(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		t.Skip("runs inside TestCrashMidPull")
	}
	s, err := Open(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(t.Context(), os.Getenv("SAMPAN_IMAGE_TEST_REF"), "", Auth{}, func(p Progress) {
		if p.Status == "Downloading" && p.Current > 0 {
			fmt.Println("DOWNLOADING")
		}
	})
	t.Fatalf("the pull ended: %v", err)
}

func TestCrashMidPull(t *testing.T) {
	r := registry(t)
	ref, id := pushed(t, r)
	r.Set(testimage.Faults{Hold: make(chan struct{}), HoldFrom: big})
	root := tempRoot(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashHelper$", "-test.v")
	cmd.Env = append(os.Environ(), crashRoot+"="+root, "SAMPAN_IMAGE_TEST_REF="+ref)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "DOWNLOADING") {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v: %s", err, seen.String())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	s := openAt(t, Config{Root: root})
	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("half an image is listed: %v", l)
	}
	if m, _ := filepath.Glob(filepath.Join(root, "content/ingest/*")); len(m) == 0 {
		t.Fatal("the crash left no partial download: the test shows nothing")
	}
	leases, err := s.leases().List(s.ns(t.Context()))
	if err != nil || len(leases) != 1 || leases[0].Labels["containerd.io/gc.expire"] == "" {
		t.Fatalf("leases %v, want the dead process' with an expiry: %v", leases, err)
	}
	r.Set(testimage.Faults{})
	r.Forget()
	img, err := s.Pull(t.Context(), ref, "", Auth{}, nil)
	if err != nil || img.ID != id {
		t.Fatalf("%s, %v", img.ID, err)
	}
	resumed(t, r.Requests())
	// What the dead process' lease held does not outlive the image.
	if _, err := s.Remove(t.Context(), ref, false, true, nil); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, s)
}

func TestLogin(t *testing.T) {
	r := registry(t)
	s := open(t)
	for name, f := range map[string]testimage.Faults{
		"basic": {Basic: true, User: "u", Password: "p"}, "token": {Bearer: true, User: "u", Password: "p"},
	} {
		r.Set(f)
		for _, address := range []string{r.Host, "http://" + r.Host, "https://" + r.Host + "/v2/"} {
			if _, err := s.Login(t.Context(), Auth{ServerAddress: address, Username: "u", Password: "p"}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := s.Login(t.Context(), Auth{ServerAddress: r.Host, Username: "u", Password: "wrong"})
		wantKind(t, err, fault.Unauthorized, "incorrect username or password")
	}
	_, err := s.Login(t.Context(), Auth{ServerAddress: "not a host"})
	wantKind(t, err, fault.InvalidArgument, "registry address")
	r.Close()
	_, err = s.Login(t.Context(), Auth{ServerAddress: r.Host, Username: "u", Password: "p"})
	wantKind(t, err, fault.Unavailable, "login to "+r.Host)
}

// index puts an index of the given manifests into the registry.
func putIndex(t testing.TB, r *testimage.Server, repo, tag string, list ...ocispec.Descriptor) {
	t.Helper()
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+r.Host+"/v2/"+repo+"/manifests/"+tag, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", ocispec.MediaTypeImageIndex)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		t.Fatalf("index refused: %s", res.Status)
	}
}

func TestPullChoosesThePlatform(t *testing.T) {
	r := registry(t)
	builder := open(t)
	var list []ocispec.Descriptor
	ids := map[string]string{}
	for _, arch := range []string{"s390x", "amd64", "arm64"} {
		ref := r.Host + "/multi:" + arch
		img := load(t, builder, testimage.Spec{Tags: []string{ref}, Architecture: arch, Files: map[string]testimage.File{"/arch": testimage.Text(arch)}})[0]
		if err := builder.Push(t.Context(), ref, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
		d := img.Target
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		list = append(list, d)
		ids[arch] = img.ID
	}
	attestation := list[0]
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	putIndex(t, r, "multi", "all", append([]ocispec.Descriptor{attestation}, list...)...)
	ref := r.Host + "/multi:all"

	s := open(t)
	img, err := s.Pull(t.Context(), ref, "", Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.Manifest.Digest.String() != ids[runtime.GOARCH] || img.Architecture != runtime.GOARCH {
		t.Errorf("pulled %s, want that for %s", img.Architecture, runtime.GOARCH)
	}
	desc, all, err := s.Resolve(t.Context(), ref, Auth{})
	if err != nil || len(all) != 3 || desc.MediaType != ocispec.MediaTypeImageIndex {
		t.Errorf("Resolve: %+v, %v, %v", desc, all, err)
	}
	if want := r.Host + "/multi@" + desc.Digest.String(); !slices.Contains(img.RepoDigests, want) {
		t.Errorf("RepoDigests %v, want %s", img.RepoDigests, want)
	}
	for _, byDigest := range []string{r.Host + "/multi@" + desc.Digest.String(), r.Host + "/multi@" + img.Target.Digest.String()} {
		if got, err := s.Get(t.Context(), byDigest); err != nil || got.ID != img.ID {
			t.Errorf("Get(%s): %v", byDigest, err)
		}
	}
	other, err := s.Pull(t.Context(), ref, "linux/s390x", Auth{}, nil)
	if err != nil || other.ID != img.ID || other.Manifest.Digest.String() != ids["s390x"] {
		t.Errorf("pull for another platform: %s, %v", other.Architecture, err)
	}
	// Both are there now, under one name.
	if got, err := s.Get(t.Context(), ref); err != nil || got.Architecture != runtime.GOARCH || got.ID != desc.Digest.String() {
		t.Errorf("after the pull for another platform: %s %s, %v", got.Architecture, got.ID, err)
	}
	for _, arch := range []string{runtime.GOARCH, "s390x"} {
		got, err := s.ForPlatform(t.Context(), ref, "linux/"+arch)
		if err != nil || got.Architecture != arch {
			t.Errorf("for %s: %s, %v", arch, got.Architecture, err)
		}
		if err := s.PrepareRootfs(t.Context(), "c-"+arch, got.Manifest.Digest.String()); err != nil {
			t.Fatal(err)
		}
		mounted, err := s.MountRootfs(t.Context(), "c-"+arch, filepath.Join(t.TempDir(), "rootfs"))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(mounted.Path, "arch")); err != nil || string(b) != arch {
			t.Errorf("the files for %s: %q, %v", arch, b, err)
		}
		if err := errors.Join(s.UnmountRootfs(t.Context(), "c-"+arch, mounted.Path), s.RemoveRootfs(t.Context(), "c-"+arch)); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.ForPlatform(t.Context(), ref, "linux/arm64"); runtime.GOARCH != "arm64" && !fault.Is(err, fault.NotFound) {
		t.Errorf("a platform that was not pulled: %v", err)
	}
	for _, arch := range []string{"s390x", runtime.GOARCH} {
		removed, err := s.RemovePlatforms(t.Context(), ref, []ocispec.Platform{{OS: "linux", Architecture: arch}}, false, nil)
		if err != nil || len(removed) == 0 || removed[0].Deleted != ids[arch] {
			t.Errorf("removal of %s: %+v, %v", arch, removed, err)
		}
	}
	if _, err := s.Get(t.Context(), ref); !fault.Is(err, fault.NotFound) {
		t.Errorf("an image without any platform is still there: %v", err)
	}
	if _, err := s.Pull(t.Context(), ref, "linux/riscv64", Auth{}, nil); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no matching manifest") {
		t.Errorf("pull for a platform there is not: %v", err)
	}
	if _, one, err := s.Resolve(t.Context(), r.Host+"/multi:arm64", Auth{}); err != nil || len(one) != 1 || one[0].Architecture != "arm64" {
		t.Errorf("Resolve of a manifest: %v, %v", one, err)
	}
	_, _, err = s.Resolve(t.Context(), r.Host+"/multi:none", Auth{})
	wantKind(t, err, fault.NotFound, "manifest unknown")
}

func TestCollectionLeavesWhatAPullUses(t *testing.T) {
	r := registry(t)
	shared := map[string]testimage.File{"/shared": {Data: noise(1000, 9)}}
	small := testimage.Spec{Tags: []string{r.Host + "/small:1"}, Files: shared}
	large := testimage.Spec{Tags: []string{r.Host + "/large:1"}, Files: shared, Layers: []map[string]testimage.File{{"/own": {Data: noise(2*big, 8)}}}}
	builder := open(t)
	load(t, builder, small, large)
	for _, ref := range []string{small.Tags[0], large.Tags[0]} {
		if err := builder.Push(t.Context(), ref, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t)
	if _, err := s.Pull(t.Context(), small.Tags[0], "", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	r.Set(testimage.Faults{Hold: hold, HoldFrom: big})
	exists, half := make(chan struct{}), make(chan struct{})
	var once [2]sync.Once
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), large.Tags[0], "", Auth{}, func(p Progress) {
			switch {
			case p.Status == "Already exists":
				once[0].Do(func() { close(exists) })
			case p.Status == "Downloading" && p.Current > 0:
				once[1].Do(func() { close(half) })
			}
		})
		done <- err
	}()
	for _, c := range []chan struct{}{exists, half} {
		select {
		case <-c:
		case err := <-done:
			t.Fatalf("the pull ended early: %v", err)
		}
	}
	// The pull stands on the shared layer now, and its own is half there: take away all that can be taken.
	if _, err := s.Remove(t.Context(), small.Tags[0], true, true, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := rootfsOf(t, s, "c", large.Tags[0])
	if b := read(t, filepath.Join(got.Path, "shared")); b != string(noise(1000, 9)) {
		t.Error("the shared layer is damaged")
	}
	var b bytes.Buffer
	if err := s.Save(t.Context(), []string{large.Tags[0]}, &b); err != nil {
		t.Errorf("a blob is missing: %v", err)
	}
}
