package docker

import (
	"os"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// serviceMount checks a mount as a container's. Names that are templates are checked where they are filled: on the host.
func serviceMount(in mount.Mount) (cloud.Mount, error) {
	checked := in
	if strings.Contains(in.Source, "{{") {
		checked.Source = "source"
		if in.Type == mount.TypeBind {
			checked.Source = "/source"
		}
	}
	if strings.Contains(in.Target, "{{") {
		checked.Target = "/target"
	}
	m, err := mountOf(checked)
	if err != nil {
		return cloud.Mount{}, err
	}
	if checked.Target != in.Target {
		m.Target = in.Target
	}
	return cloud.Mount{
		Type: cloud.MountType(m.Type), Source: in.Source, Target: m.Target, ReadOnly: m.ReadOnly, Propagation: m.Propagation, NoCopy: m.NoCopy,
		NonRecursive: m.NonRecursive, ReadOnlyNonRecursive: m.ReadOnlyNonRecursive, ReadOnlyForceRecursive: m.ReadOnlyForceRecursive,
		CreateMountpoint: m.CreateMountpoint, Subpath: m.Subpath, VolumeDriver: m.Driver, VolumeOpts: m.DriverOpts, VolumeLabels: m.Labels,
		TmpfsSize: m.TmpfsSize, TmpfsMode: m.TmpfsMode, TmpfsOptions: m.TmpfsOptions,
	}, nil
}

func wireServiceMount(m *cloud.Mount) mount.Mount {
	out := mount.Mount{Type: mount.Type(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	switch m.Type {
	case cloud.MountBind:
		o := mount.BindOptions{Propagation: mount.Propagation(m.Propagation), NonRecursive: m.NonRecursive, CreateMountpoint: m.CreateMountpoint,
			ReadOnlyNonRecursive: m.ReadOnlyNonRecursive, ReadOnlyForceRecursive: m.ReadOnlyForceRecursive}
		if o != (mount.BindOptions{}) {
			out.BindOptions = &o
		}
	case cloud.MountVolume:
		if m.NoCopy || m.Subpath != "" || m.VolumeDriver != "" || m.VolumeOpts != nil || m.VolumeLabels != nil {
			out.VolumeOptions = &mount.VolumeOptions{NoCopy: m.NoCopy, Labels: m.VolumeLabels, Subpath: m.Subpath}
			if m.VolumeDriver != "" || m.VolumeOpts != nil {
				out.VolumeOptions.DriverConfig = &mount.Driver{Name: m.VolumeDriver, Options: m.VolumeOpts}
			}
		}
	case cloud.MountTmpfs:
		if m.TmpfsSize != 0 || m.TmpfsMode != 0 || m.TmpfsOptions != nil {
			out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.TmpfsSize, Mode: os.FileMode(m.TmpfsMode), Options: m.TmpfsOptions}
		}
	case cloud.MountImage:
		if m.Subpath != "" {
			out.ImageOptions = &mount.ImageOptions{Subpath: m.Subpath}
		}
	}
	return out
}
