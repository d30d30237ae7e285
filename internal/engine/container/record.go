package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/logs/ship"
)

// recordVersion is written into every record; a newer one is refused, so that a downgrade loses nothing.
const recordVersion = 1

const recordFile = "config.json"

// record is a container as it is kept on disk.
type record struct {
	Version int
	Container
	MountPlan   []plannedMount // what Mounts says, with what is needed to make it again
	EverStarted bool
	// Images mounted besides the root file system hold snapshots under these names.
	ExtraRootfs []string
}

// ctr is a container in memory. mu is held over every change; rec may be read and written under it only. Slices and
// maps inside rec are never changed in place, so that published copies may share them.
type ctr struct {
	id  string
	dir string

	mu      sync.Mutex
	rec     record
	pending []*attachStream // attached before the start
	// starting are those of pending that a start under way has connected.
	starting []*attachStream
	restart  backoff
	run      *run // of the running process, nil when there is none
	// What takes the log to a collector, for log drivers that have one: the connection made for the run that is about to
	// start, and the sending of the newest run's log.
	sink     ship.Sink
	shipping *shipping
	// stopAsked: somebody ended this run on purpose, no restart policy applies.
	stopAsked bool
	// manualRestart is there while Restart is under way, and closed at its end: an exit is a step of it, AutoRemove does not
	// apply.
	manualRestart atomic.Pointer[chan struct{}]
	// forced: an exit is one of a forced removal, AutoRemove does not apply.
	forced bool

	snap    atomic.Pointer[Container]
	ended   atomic.Pointer[<-chan struct{}] // of the run, for followers of the log; nil when there is none
	waiters waiters
}

// run is what belongs to one life of a container's process.
type run struct {
	began      time.Time     // when this daemon came to know of it
	whole      bool          // which was when it was started
	ended      chan struct{} // closed when the exit is handled: the log is complete
	stopHealth func()
}

// lasted is how long the process ran; byClock is what the wall clock says, which may have been set meanwhile.
func (r *run) lasted(byClock time.Duration) time.Duration {
	seen := time.Since(r.began)
	if r.whole {
		return seen
	}
	return max(byClock, seen)
}

// snapshot returns the newest published state.
func (c *ctr) snapshot() Container { return *c.snap.Load() }

// publish shows the current record to readers. The caller holds mu.
func (c *ctr) publish() {
	s := c.rec.Container
	if h := s.State.Health; h != nil {
		h2 := *h
		h2.Log = slices.Clone(h.Log)
		s.State.Health = &h2
	}
	s.Networks.Endpoints = maps.Clone(s.Networks.Endpoints)
	c.snap.Store(&s)
}

// save publishes the record and writes it atomically. It does not sync: a host that loses power within a second falls
// back to the previous record, never to a torn one. The caller holds mu.
func (c *ctr) save() error {
	c.publish()
	return c.write()
}

// write is save without telling anybody. The caller holds mu.
func (c *ctr) write() error {
	c.rec.Version = recordVersion
	data, err := json.Marshal(&c.rec)
	if err != nil {
		return fmt.Errorf("record of container %s: %w", short(c.id), err)
	}
	return writeAtomic(filepath.Join(c.dir, recordFile), data, 0o600)
}

// saveLogged is save where the state has changed whatever the disk says.
func (m *Manager) saveLogged(c *ctr) {
	if err := c.save(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Error("container record not written; it is current in memory", "container", c.id, "error", err)
	}
}

// writeAtomic replaces a file so that a reader or a crash sees the old or the new content whole.
func writeAtomic(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-"+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// load reads the records of all containers.
func (m *Manager) load() error {
	dirs, err := os.ReadDir(m.Root)
	if err != nil {
		return fmt.Errorf("container folder: %w", err)
	}
	for _, d := range dirs {
		dir := filepath.Join(m.Root, d.Name())
		if !isID(d.Name()) {
			if !d.IsDir() || len(d.Name()) < len(trashPrefix) || d.Name()[:len(trashPrefix)] != trashPrefix {
				continue
			}
			if err := os.RemoveAll(dir); err != nil { // a removal that was interrupted
				m.log.Warn("leftover of a removed container", "path", dir, "error", err)
			}
			continue
		}
		c, err := readRecord(dir, d.Name())
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && os.Remove(dir) == nil {
				continue // its creation was interrupted at once: nothing was in it
			}
			if errors.Is(err, fs.ErrNotExist) {
				m.log.Warn("container folder without a record skipped: its creation was interrupted or its record is lost", "path", dir)
			} else {
				m.log.Error("container skipped: its record cannot be read", "path", dir, "error", err)
			}
			continue
		}
		name := c.rec.Config.Name
		if other, taken := m.byName[name]; taken {
			m.log.Error("two containers have one name; the second is reached by ID only", "name", name, "first", other, "second", c.id)
		} else {
			m.byName[name] = c.id
		}
		m.byID[c.id] = c
		m.ids.keep(c.id, c.rec.IDs)
		for _, p := range c.rec.MountPlan {
			if p.Volume == "" {
				continue
			}
			if err := m.Volumes.Reserve(m.ctx, p.Volume, c.id); err != nil {
				m.log.Warn("volume of a container is gone", "container", c.id, "volume", p.Volume, "error", err)
			}
		}
	}
	return nil
}

func readRecord(dir, id string) (*ctr, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, err
	}
	c := newCtr(id, dir)
	if err := json.Unmarshal(data, &c.rec); err != nil {
		return nil, err
	}
	if c.rec.Version > recordVersion {
		return nil, fmt.Errorf("written by a newer version (format %d, this one reads up to %d)", c.rec.Version, recordVersion)
	}
	if c.rec.ID != id {
		return nil, fmt.Errorf("names container %q", c.rec.ID)
	}
	c.restart.retries = c.rec.RestartCount
	c.publish()
	return c, nil
}

func newCtr(id, dir string) *ctr { return &ctr{id: id, dir: dir} }

// event publishes what happened to a container, with Docker's attributes.
func (m *Manager) event(c *Container, action string, attrs ...string) {
	a := make(map[string]string, len(c.Config.Labels)+2+len(attrs)/2)
	maps.Copy(a, c.Config.Labels)
	a["image"], a["name"] = c.Config.Image, c.Config.Name
	for i := 0; i+1 < len(attrs); i += 2 {
		a[attrs[i]] = attrs[i+1]
	}
	m.Events.Publish(events.Event{Type: "container", Action: action, ID: c.ID, Attrs: a})
}

// networkEvents tells of each network that a container is on.
func (m *Manager) networkEvents(c *Container, action string) {
	for _, name := range sortedKeys(c.Networks.Endpoints) {
		if e := c.Networks.Endpoints[name]; e.NetworkID != "" {
			attrs := map[string]string{"container": c.ID, "name": e.NetworkName}
			if e.Driver != "" { // a container that an older daemon started has none
				attrs["type"] = e.Driver
			}
			m.Events.Publish(events.Event{Type: "network", Action: action, ID: e.NetworkID, Attrs: attrs})
		}
	}
}

// volumeEvents tells that a container's start or end has mounted or unmounted its volumes, with Docker's attributes.
func (m *Manager) volumeEvents(c *Container, action string) {
	for _, p := range c.Mounts {
		if p.Type != MountVolume {
			continue
		}
		attrs := map[string]string{"container": c.ID, "driver": p.Driver}
		if action == "mount" {
			attrs["destination"], attrs["propagation"], attrs["read/write"] = p.Destination, p.Propagation, strconv.FormatBool(p.RW)
		}
		m.Events.Publish(events.Event{Type: "volume", Action: action, ID: p.Name, Attrs: attrs})
	}
}

// short is the form of an ID that people read.
func short(id string) string { return id[:min(12, len(id))] }
