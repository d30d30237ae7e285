package docker

import (
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// olderHostConfig makes a create request of an older version say what it meant then: fields that came later are passed
// over, or refused where passing over would give a client less than it relies on.
func olderHostConfig(host *apicontainer.HostConfig, nets *apinetwork.NetworkingConfig, version apiVersion) error {
	if version < 1040 && host.IpcMode.IsEmpty() {
		host.IpcMode = apicontainer.IPCModeShareable
	}
	if version < 1042 {
		host.ConsoleSize = [2]uint{}
	}
	if version < 1043 {
		host.Annotations = nil
	}
	for _, e := range nets.EndpointsConfig {
		if e != nil && version < 1044 {
			e.MacAddress = nil // it was said of the container
		}
		if e != nil && version < 1048 {
			e.GwPriority = 0
		}
	}
	for i := range host.Mounts {
		if err := olderMount(&host.Mounts[i], version); err != nil {
			return err
		}
	}
	return nil
}

func olderMount(m *mount.Mount, version apiVersion) error {
	since := func(v apiVersion, field string) error {
		return fault.New(fault.InvalidArgument, "%s needs API v%s or newer", field, v)
	}
	if version < 1042 { // options of another type of mount were no error
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
	}
	if o := m.BindOptions; o != nil {
		if version < 1040 {
			o.NonRecursive = false
		}
		if version < 1042 {
			o.CreateMountpoint = false
		}
		if version < 1044 && m.Type == mount.TypeBind {
			if o.ReadOnlyForceRecursive {
				return since(1044, "BindOptions.ReadOnlyForceRecursive")
			}
			o.ReadOnlyNonRecursive = false // it is the default, see containerConfig
		}
	}
	switch {
	case version < 1045 && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "":
		return since(1045, "VolumeOptions.Subpath")
	case version < 1048 && m.Type == mount.TypeImage:
		return since(1048, `Mount type "Image"`)
	}
	return nil
}
