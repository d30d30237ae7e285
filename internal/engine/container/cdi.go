package container

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// DeviceRequest asks for devices by what they are (--gpus) or by their names (--device vendor.com/class=name), as the
// Container Device Interface describes them (tags.cncf.io/container-device-interface). A negative Count means all.
type DeviceRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string // any of the rows, all of a row
	Options      map[string]string
}

// gpuKinds are the kinds of devices that "gpu" may mean, in the order in which they are looked for.
var gpuKinds = []struct {
	kind         string
	drivers      []string
	capabilities []string
}{
	{"nvidia.com/gpu", []string{"nvidia", "nvidia.cdi"}, []string{"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}},
	{"amd.com/gpu", []string{"amd", "amd.cdi"}, []string{"gpu", "amd"}},
}

// deviceSpecs reads the descriptions of devices when somebody asks, and anew each time: they come and go with drivers.
type deviceSpecs struct {
	dirs []string

	mu    sync.Mutex
	cache *cdi.Cache
}

func (d *deviceSpecs) read() (*cdi.Cache, error) {
	if d.cache == nil {
		c, err := cdi.NewCache(cdi.WithSpecDirs(d.dirs...), cdi.WithAutoRefresh(false))
		if err != nil {
			return nil, fmt.Errorf("descriptions of devices in %s: %w", strings.Join(d.dirs, ", "), err)
		}
		d.cache = c
		return c, nil
	}
	_ = d.cache.Refresh() // what is wrong with single files is in GetErrors
	return d.cache, nil
}

// problems are what is wrong with descriptions that are there.
func problems(c *cdi.Cache) []string {
	var out []string
	for path, errs := range c.GetErrors() {
		for _, err := range errs {
			if !errors.Is(err, fs.ErrNotExist) {
				out = append(out, fmt.Sprintf("CDI: Error associated with spec file %s: %v", path, err))
			}
		}
	}
	slices.Sort(out)
	return out
}

// Devices lists the names of the devices that containers may ask for, where they are described, and what is wrong with
// descriptions that cannot be read.
func (m *Manager) Devices() (dirs, names, warnings []string) {
	d := &m.devices
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := d.read()
	if err != nil {
		return d.dirs, nil, []string{err.Error()}
	}
	return d.dirs, c.ListDevices(), problems(c)
}

// inject adds to the specification what the requested devices need: nodes, mounts, variables, hooks.
func (d *deviceSpecs) inject(s *specs.Spec, requests []DeviceRequest) error {
	if len(requests) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := d.read()
	if err != nil {
		return err
	}
	for _, r := range requests {
		names, err := r.names(c.ListVendors())
		if err != nil {
			return err
		}
		if len(names) == 0 {
			continue
		}
		if _, err := c.InjectDevices(s, names...); err != nil {
			if wrong := problems(c); len(wrong) > 0 {
				err = fmt.Errorf("%w (%s)", err, strings.Join(wrong, "; "))
			}
			return fault.New(fault.InvalidArgument, "CDI device injection failed: %w", err)
		}
	}
	return nil
}

// names are the full names of the requested devices, given the vendors whose devices are described.
func (r DeviceRequest) names(vendors []string) ([]string, error) {
	if r.Driver == "cdi" {
		switch {
		case r.Count != 0:
			return nil, fault.New(fault.InvalidArgument, "unexpected count in CDI device request")
		case len(r.Options) > 0:
			return nil, fault.New(fault.InvalidArgument, "unexpected options in CDI device request")
		}
		return r.DeviceIDs, nil
	}
	if r.Count != 0 && len(r.DeviceIDs) > 0 {
		return nil, fault.New(fault.InvalidArgument, "cannot set both Count and DeviceIDs on device request")
	}
	for _, k := range gpuKinds {
		vendor, _, _ := strings.Cut(k.kind, "/")
		if !slices.Contains(vendors, vendor) || !r.fits(k.drivers, k.capabilities) {
			continue
		}
		ids := r.DeviceIDs
		if r.Count < 0 {
			ids = []string{"all"}
		}
		for i := range max(0, r.Count) {
			ids = append(ids, strconv.Itoa(i))
		}
		names := make([]string, len(ids))
		for i, id := range ids {
			if names[i] = id; !strings.Contains(id, "=") {
				names[i] = k.kind + "=" + id
			}
		}
		return names, nil
	}
	return nil, fault.New(fault.InvalidArgument, "could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
}

// fits tells whether a driver of these names, with these capabilities, is what is asked for.
func (r DeviceRequest) fits(drivers, capabilities []string) bool {
	if r.Driver != "" {
		return slices.Contains(drivers, r.Driver)
	}
	return slices.ContainsFunc(r.Capabilities, func(row []string) bool {
		return len(row) > 0 && !slices.ContainsFunc(row, func(c string) bool { return !slices.Contains(capabilities, c) })
	})
}
