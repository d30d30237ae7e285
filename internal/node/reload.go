package node

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/node/config"
)

// Reload applies what can change while the daemon runs of a configuration that Validate has looked at. It changes all of
// that or, when it fails, nothing. later are the keys of the file that a restart would apply.
func (n *Node) Reload(cfg config.Config) (later []string, err error) {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	// What can fail comes first; Validate has seen to it that the rest does not.
	if err := n.images.SetRegistries(cfg.Mirrors, cfg.Insecure); err != nil {
		return nil, err
	}
	if err := n.images.SetLimits(cfg.Limits); err != nil {
		return nil, err
	}
	if err := n.containers.SetDefaults(cfg.Defaults); err != nil {
		return nil, err
	}
	built := func(c *config.Config) string {
		text, err := json.Marshal([]any{c.Mirrors, c.Insecure, c.Debug, c.BuildSettings})
		return fmt.Sprint(string(text), err)
	}
	if built(&cfg) != built(&n.live) {
		n.builds.Configure(func(o *build.Options) {
			o.Mirrors, o.Insecure, o.Debug, o.Settings = cfg.Mirrors, cfg.Insecure, cfg.Debug, cfg.BuildSettings
		})
	}
	n.host.reload(cfg)
	for _, note := range cfg.Notes {
		if !slices.Contains(n.live.Notes, note) {
			n.log.Warn("configuration: " + note)
		}
	}
	n.live = cfg
	// What another than the one that the daemon was started with is waiting for is said each time.
	later = cfg.NeedRestart(&n.cfg)
	n.bus.Publish(events.Event{Type: "daemon", Action: "reload", ID: n.host.base.ID, Attrs: reloadAttributes(&cfg, n.host.base.Name, n.host.base.CgroupVersion)})
	return later, nil
}

// reloadAttributes are those that dockerd's event has.
func reloadAttributes(c *config.Config, host, cgroupVersion string) map[string]string {
	list := func(s []string) string {
		text, err := json.Marshal(append([]string{}, s...))
		if err != nil {
			return "[]"
		}
		return string(text)
	}
	cgroupns := "host"
	if cgroupVersion == "2" {
		cgroupns = "private"
	}
	stop := 10
	if t := c.Defaults.StopTimeout; t != nil {
		stop = *t
	}
	limits := c.Limits.OrDefaults()
	var features []string
	for _, name := range slices.Sorted(maps.Keys(c.Features)) {
		features = append(features, fmt.Sprintf("%s:%v", name, c.Features[name]))
	}
	return map[string]string{
		"name": host, "debug": strconv.FormatBool(c.Debug), "labels": list(c.Labels),
		"insecure-registries": list(c.Insecure), "registry-mirrors": list(c.Mirrors),
		"max-concurrent-downloads": strconv.Itoa(limits.Downloads), "max-concurrent-uploads": strconv.Itoa(limits.Uploads),
		"max-download-attempts": strconv.Itoa(limits.Attempts), "default-stop-timeout": strconv.Itoa(stop),
		"default-shm-size": strconv.FormatInt(cmp.Or(c.Defaults.ShmSize, 64<<20), 10), "default-ipc-mode": cmp.Or(c.Defaults.IpcMode, "private"),
		"default-cgroupns-mode": cmp.Or(c.Defaults.CgroupnsMode, cgroupns), "default-runtime": "runc", "runtimes": "",
		"live-restore": "true", "shutdown-timeout": "0", "features": "map[" + strings.Join(features, " ") + "]",
	}
}
