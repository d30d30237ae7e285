package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

const hello = `package main

import "fmt"

func main() { fmt.Println("\nHello from Docker!\nThis message shows that your installation appears to be working correctly.") }
`

// images are the images that moby's tests expect on the host, by the names it gives them.
func images(ctx context.Context, debian string) ([]byte, error) {
	files, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "moby-images-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	program, err := testimage.GoProgram(ctx, hello, "hello", tmp)
	if err != nil {
		return nil, err
	}
	sh := ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	greet := ocispec.ImageConfig{Cmd: []string{"/hello"}, Env: sh.Env, WorkingDir: "/"}
	helloFiles := map[string]testimage.File{"/hello": testimage.Executable(program)}
	glibc := map[string]testimage.File{"/etc/variant": testimage.Text("glibc\n")}
	specs := []testimage.Spec{
		{Tags: []string{"busybox:latest"}, Files: files, Config: sh},
		{Tags: []string{"busybox:glibc"}, Files: files, Layers: []map[string]testimage.File{glibc}, Config: sh},
		{Tags: []string{"hello-world:frozen", "hello-world:amd64"}, Files: helloFiles, Config: greet, Architecture: "amd64"},
		{Tags: []string{"hello-world:arm64"}, Files: helloFiles, Config: greet, Architecture: "arm64"},
		{Tags: []string{"arm32v7/hello-world:latest"}, Files: helloFiles, Config: greet, Architecture: "arm"},
	}
	d := testimage.Spec{Tags: []string{"debian:trixie-slim"}, Files: files, Config: sh}
	if debian != "" {
		if d.Files, err = untar(debian); err != nil {
			return nil, fmt.Errorf("%s: %w", debian, err)
		}
		d.Config.Cmd = []string{"bash"}
	}
	return testimage.BuildAll(ctx, append(specs, d)...)
}

// busybox are the files of an image as busybox's own: one program under the names of all its applets.
func busybox(ctx context.Context) (map[string]testimage.File, error) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return nil, errors.New("busybox is not installed (apt-get install busybox-static): the images of the tests are made of it")
	}
	list, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("the applets of %s: %w", program, err)
	}
	names := append(strings.Fields(string(list)), "busybox")
	slices.Sort(names)
	names = slices.Compact(names)
	first := "/bin/" + names[0]
	files := map[string]testimage.File{
		first:             testimage.Executable(program),
		"/dev":            {Dir: true},
		"/home":           {Dir: true, UID: 65534, GID: 65534},
		"/root":           {Dir: true, Mode: 0o700},
		"/tmp":            {Dir: true, Mode: 0o1777},
		"/usr/bin/env":    {Symlink: "../../bin/env"},
		"/usr/sbin":       {Dir: true, UID: 1, GID: 1},
		"/var/spool/mail": {Dir: true, UID: 8, GID: 8},
		"/var/www":        {Dir: true, UID: 33, GID: 33},
		"/etc/passwd": testimage.Text("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n" +
			"bin:x:2:2:bin:/bin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\nsync:x:4:100:sync:/bin:/bin/sync\n" +
			"mail:x:8:8:mail:/var/spool/mail:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
			"operator:x:37:37:Operator:/var:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
		"/etc/group": testimage.Text("root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nlp:x:7:\n" +
			"mail:x:8:\nkmem:x:9:\nwheel:x:10:root\ncdrom:x:11:\ndialout:x:18:\nfloppy:x:19:\nvideo:x:28:\naudio:x:29:\n" +
			"tape:x:32:\nwww-data:x:33:\noperator:x:37:\nutmp:x:43:\nplugdev:x:46:\nstaff:x:50:\nlock:x:54:\nnetdev:x:82:\n" +
			"users:x:100:\nnobody:x:65534:\n"),
		"/etc/shadow":        {Data: []byte("root:*:::::::\nnobody:*:::::::\n"), Mode: 0o640},
		"/etc/nsswitch.conf": testimage.Text("passwd: db files\ngroup: db files\nhosts: files dns\n"),
	}
	for _, name := range names[1:] {
		files["/bin/"+name] = testimage.File{Hardlink: first}
	}
	for name, script := range map[string]string{"/bin/addgroup": addgroup, "/bin/adduser": adduser} {
		if _, has := files[name]; !has { // Debian's is built without them
			files[name] = testimage.File{Data: []byte(script), Mode: 0o755}
		}
	}
	return files, nil
}

// What the tests use of two applets.
const (
	addgroup = `#!/bin/sh
# addgroup -g GID NAME
echo "$3:x:$2:" >> /etc/group
`
	adduser = `#!/bin/sh
# adduser -D [-H] [-u UID] [-G GROUP] NAME
uid=1000 group= home=yes
while getopts DHu:G: o; do
	case $o in
	H) home= ;;
	u) uid=$OPTARG ;;
	G) group=$OPTARG ;;
	esac
done
shift $((OPTIND - 1))
if [ -z "$group" ]; then
	group=$1
	echo "$1:x:$uid:" >> /etc/group
fi
gid=$(awk -F: -v g="$group" '$1 == g { print $3 }' /etc/group)
echo "$1:x:$uid:$gid::/home/$1:/bin/sh" >> /etc/passwd
[ -z "$home" ] || { mkdir -p "/home/$1" && chown "$uid:$gid" "/home/$1"; }
`
)

// untar reads the files of a root file system.
func untar(name string) (map[string]testimage.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := map[string]testimage.File{}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		} else if err != nil {
			return nil, err
		}
		at := path.Clean("/" + h.Name)
		file := testimage.File{Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid}
		switch h.Typeflag {
		case tar.TypeDir:
			file.Dir = true
		case tar.TypeSymlink:
			file.Symlink = h.Linkname
		case tar.TypeLink: // names are written in order, so a link could come before its file: copy it
			file.Data = files[path.Clean("/"+h.Linkname)].Data
		case tar.TypeReg:
			var b bytes.Buffer
			if _, err := io.Copy(&b, tr); err != nil {
				return nil, err
			}
			file.Data = b.Bytes()
		default:
			continue // devices: the runtime makes its own
		}
		files[at] = file
	}
}
