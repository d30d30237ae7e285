package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/fault/failpoint"
	"github.com/sampan-cloud/sampan/internal/sys/diskusage"
)

const (
	// LabelAnonymous marks a volume that nobody named.
	LabelAnonymous = "com.docker.volume.anonymous"

	driverLocal  = "local"
	dataFolder   = "_data"
	metadataFile = "volume.json"
	hiddenPrefix = "." // being made or being deleted
)

// Store holds the volumes of this host. It is safe for concurrent use.
type Store struct {
	root string

	mu      sync.Mutex
	volumes map[string]*entry
	changed func(action string, v Volume)
}

// entry is a volume and who uses it.
type entry struct {
	Volume
	users map[string]bool // user → it is mounted for them
	busy  sync.Mutex      // held while mounting, unmounting and removing
	gone  bool
}

// record is what volume.json holds.
type record struct {
	Version   int               `json:"version"`
	Created   time.Time         `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"`
}

// Open reads the volumes under root, DATA-ROOT/volumes, which it creates if need be. Nobody uses a volume until Acquire
// or Reserve says so again; mounts of an earlier process are taken over by Acquire and removed by Remove.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	s := &Store{root: root, volumes: map[string]*entry{}, changed: func(string, Volume) {}}
	dirs, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, d := range dirs {
		path := filepath.Join(root, d.Name())
		switch {
		case !d.IsDir():
		case strings.HasPrefix(d.Name(), hiddenPrefix):
			// Half-made or half-removed by a process that died.
			_ = unmountAll(filepath.Join(path, dataFolder))
			_ = os.RemoveAll(path)
		default:
			v, err := s.read(d.Name())
			if err != nil {
				return nil, fmt.Errorf("volume %s: %w", d.Name(), err)
			}
			if v != nil {
				mark := filepath.Join(path, copyMark)
				if _, err := os.Lstat(mark); err == nil {
					if err := errors.Join(clearFolder(v.Mountpoint), os.Remove(mark)); err != nil {
						return nil, fmt.Errorf("volume %s: %w", d.Name(), err)
					}
				}
				s.volumes[v.Name] = &entry{Volume: *v, users: map[string]bool{}}
			}
		}
	}
	return s, nil
}

// read returns the volume in a folder; nil for a folder that holds none.
func (s *Store) read(name string) (*Volume, error) {
	dir := filepath.Join(s.root, name)
	data, err := os.Stat(filepath.Join(dir, dataFolder))
	if err != nil {
		return nil, nil //nolint:nilerr // some other folder
	}
	v := &Volume{Name: name, Driver: driverLocal, Mountpoint: filepath.Join(dir, dataFolder), Created: data.ModTime()}
	b, err := os.ReadFile(filepath.Join(dir, metadataFile))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil // a folder that was put there by hand, or came from Docker
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: correct it or remove the folder", metadataFile, err)
	}
	v.Created, v.Labels, v.Options, v.Anonymous = r.Created, r.Labels, r.Options, r.Anonymous
	return v, nil
}

// Notify has f told of each volume that is made ("create") or removed ("destroy"), under the store's lock. It is to be
// called before anything is.
func (s *Store) Notify(f func(action string, v Volume)) { s.changed = f }

var nameChars = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// CheckName says, in Docker's words, what is wrong with a volume's name.
func CheckName(name string) error {
	if len(name) == 1 {
		return fault.New(fault.InvalidArgument, "volume name is too short, names should be at least two alphanumeric characters")
	}
	if !nameChars.MatchString(name) {
		return fault.New(fault.InvalidArgument, "%q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	if len(name) > 255 {
		return fault.New(fault.InvalidArgument, "volume name is too long: %d characters, the most is 255", len(name))
	}
	return nil
}

// Create makes a volume, or returns the one that has the name. An empty name makes an anonymous volume with a random
// name. The same name with other driver options is a fault.Conflict; other labels are not looked at, as in Docker.
func (s *Store) Create(_ context.Context, v Volume) (Volume, error) { return s.create(v, "") }

// CreateFor is Create for a container that is being made: user counts as using the volume from its first moment, as with
// Reserve, so that nobody removes it before the container is there.
func (s *Store) CreateFor(_ context.Context, v Volume, user string) (Volume, error) {
	return s.create(v, user)
}

func (s *Store) create(v Volume, user string) (Volume, error) {
	if v.Driver != "" && v.Driver != driverLocal {
		return Volume{}, fault.New(fault.NotFound, "error looking up volume plugin %s: plugin %q not found", v.Driver, v.Driver)
	}
	v.Labels, v.Options = maps.Clone(v.Labels), maps.Clone(v.Options)
	if v.Name == "" {
		var b [32]byte
		_, _ = rand.Read(b[:])
		v.Name, v.Anonymous = hex.EncodeToString(b[:]), true
	}
	if v.Anonymous {
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels[LabelAnonymous] = ""
	}
	if err := CheckName(v.Name); err != nil {
		return Volume{}, fault.New(fault.InvalidArgument, "create %s: %w", v.Name, err)
	}
	if err := checkOptions(v.Options); err != nil {
		return Volume{}, fault.New(fault.InvalidArgument, "create %s: %w", v.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		e := s.volumes[v.Name]
		if e == nil {
			break
		}
		if e.gone { // it is being removed
			s.mu.Unlock()
			e.busy.Lock()
			e.busy.Unlock() //nolint:staticcheck // it is only waited for
			s.mu.Lock()
			continue
		}
		if len(v.Options) > 0 && !maps.Equal(v.Options, e.Options) {
			return Volume{}, fault.New(fault.Conflict, "create %s: a volume of this name with other driver options exists: remove it first, or choose another name", v.Name)
		}
		e.reserve(user)
		return e.clone(), nil
	}
	v.Driver = driverLocal
	v.Created = time.Now().UTC()
	v.Mountpoint = filepath.Join(s.root, v.Name, dataFolder)
	if err := s.write(v); err != nil {
		return Volume{}, fmt.Errorf("create %s: %w", v.Name, err)
	}
	e := &entry{Volume: v, users: map[string]bool{}}
	e.reserve(user)
	s.volumes[v.Name] = e
	s.changed("create", e.clone())
	return e.clone(), nil
}

// reserve counts user as using the volume, "" being nobody. The caller holds Store.mu.
func (e *entry) reserve(user string) {
	if _, known := e.users[user]; user != "" && !known {
		e.users[user] = false
	}
}

// write makes the volume's folder under another name and renames it: there is never half a volume.
func (s *Store) write(v Volume) (err error) {
	tmp := filepath.Join(s.root, hiddenPrefix+"new-"+rand.Text())
	if err := os.Mkdir(tmp, 0o711); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(tmp)
		}
	}()
	if err := os.Mkdir(filepath.Join(tmp, dataFolder), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(record{Version: 1, Created: v.Created, Labels: v.Labels, Options: v.Options, Anonymous: v.Anonymous}, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(tmp, metadataFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if !v.Anonymous {
		// An anonymous volume is as short-lived as its container, whose own record is no more durable; a named one must be
		// there, with its labels, after a loss of power.
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := failpoint.Hit("engine/volume.create.before-rename"); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(s.root, v.Name)); err != nil {
		return err
	}
	if v.Anonymous {
		return nil
	}
	return syncFolder(s.root)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (e *entry) clone() Volume {
	v := e.Volume
	v.Labels, v.Options = maps.Clone(v.Labels), maps.Clone(v.Options)
	return v
}

func (s *Store) find(verb, name string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.volumes[name]; e != nil {
		return e, nil
	}
	return nil, fault.New(fault.NotFound, "%s %s: no such volume", verb, name)
}

// Get returns a volume by name.
func (s *Store) Get(name string) (Volume, error) {
	e, err := s.find("get", name)
	if err != nil {
		return Volume{}, err
	}
	return e.clone(), nil
}

// List returns every volume by name.
func (s *Store) List() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Volume, 0, len(s.volumes))
	for _, name := range slices.Sorted(maps.Keys(s.volumes)) {
		out = append(out, s.volumes[name].clone())
	}
	return out
}

// Remove deletes a volume and what is in it. A volume in use is a fault.Conflict, force or not; force makes a missing
// one no error.
func (s *Store) Remove(_ context.Context, name string, force bool) error {
	e, err := s.find("get", name)
	if err != nil {
		if force {
			return nil
		}
		return err
	}
	e.busy.Lock()
	defer e.busy.Unlock()
	s.mu.Lock()
	if e.gone { // somebody else was faster
		s.mu.Unlock()
		if force {
			return nil
		}
		return fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	if len(e.users) > 0 {
		ids := slices.Sorted(maps.Keys(e.users))
		s.mu.Unlock()
		return fault.New(fault.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(ids, ", "))
	}
	e.gone = true
	s.mu.Unlock()
	restore := func(err error) error {
		s.mu.Lock()
		e.gone = false
		s.mu.Unlock()
		return fmt.Errorf("remove %s: %w", name, err)
	}
	// Never delete through a mount: what is mounted there is not ours.
	if err := unmountAll(e.Mountpoint); err != nil {
		return restore(err)
	}
	dir := filepath.Join(s.root, name)
	gone := filepath.Join(s.root, hiddenPrefix+"gone-"+rand.Text())
	if err := os.Rename(dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return restore(err)
	}
	s.mu.Lock()
	delete(s.volumes, name)
	s.changed("destroy", e.clone())
	s.mu.Unlock()
	if err := failpoint.Hit("engine/volume.remove.renamed"); err != nil {
		return err
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove %s: its name is free, but not all of its files could be deleted: %w", name, err)
	}
	return nil
}

// Acquire counts user, a container's ID, as using the volume, mounts it if it has options and is not mounted, and
// returns its folder. It is idempotent by user.
func (s *Store) Acquire(ctx context.Context, name, user string) (path string, err error) {
	return s.use(ctx, name, user, true)
}

// Reserve counts user as using the volume without mounting it: for a container that is created and does not run. A later
// Acquire of the same user mounts it.
func (s *Store) Reserve(ctx context.Context, name, user string) error {
	_, err := s.use(ctx, name, user, false)
	return err
}

func (s *Store) use(ctx context.Context, name, user string, mounted bool) (string, error) {
	e, err := s.find("get", name)
	if err != nil {
		return "", err
	}
	e.busy.Lock()
	defer e.busy.Unlock()
	s.mu.Lock()
	gone := e.gone
	s.mu.Unlock()
	if gone {
		return "", fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	if mounted && hasMount(e.Options) {
		if err := mountVolume(ctx, e.Volume); err != nil {
			return "", fault.New(fault.KindOf(err), "error while mounting volume %q: %w", e.Mountpoint, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.users[user] = e.users[user] || mounted
	return e.Mountpoint, nil
}

// Release ends user's use of the volume, and unmounts it after the last. It is idempotent; a volume that is gone is no
// error.
func (s *Store) Release(_ context.Context, name, user string) error {
	return s.leave(name, user, false)
}

// Unmount ends what Acquire began and leaves what Reserve did: the container has stopped and still counts as a user.
func (s *Store) Unmount(_ context.Context, name, user string) error {
	return s.leave(name, user, true)
}

func (s *Store) leave(name, user string, stay bool) error {
	e, err := s.find("get", name)
	if err != nil {
		return nil //nolint:nilerr // gone already
	}
	e.busy.Lock()
	defer e.busy.Unlock()
	s.mu.Lock()
	if _, known := e.users[user]; known && stay {
		e.users[user] = false
	} else {
		delete(e.users, user)
	}
	needed := slices.Contains(slices.Collect(maps.Values(e.users)), true)
	s.mu.Unlock()
	if needed || !hasMount(e.Options) {
		return nil
	}
	if err := unmountAll(e.Mountpoint); err != nil {
		return fmt.Errorf("release %s: %w", name, err)
	}
	return nil
}

// Users returns the IDs of the users of a volume, sorted.
func (s *Store) Users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.volumes[name]; e != nil {
		return slices.Sorted(maps.Keys(e.users))
	}
	return nil
}

// Size returns the space a volume takes, -1 for one whose files are elsewhere (it has driver options).
func (s *Store) Size(name string) (int64, error) {
	e, err := s.find("get", name)
	if err != nil {
		return 0, err
	}
	if hasMount(e.Options) {
		return -1, nil
	}
	size, err := diskusage.Of(context.Background(), e.Mountpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fault.New(fault.NotFound, "get %s: no such volume", name) // removed since it was looked for
	}
	if err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return size, nil
}
