package docker

import (
	"cmp"
	"encoding/json"

	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// privilegesOf reads the security options of a service's container. What the host lacks (SELinux, AppArmor) has no effect
// there, as with containers.
func privilegesOf(in *apiswarm.Privileges) (*cloud.Privileges, error) {
	if in == nil {
		return nil, nil
	}
	out := &cloud.Privileges{NoNewPrivileges: in.NoNewPrivileges}
	if c := in.CredentialSpec; c != nil && (c.Config != "" || c.File != "" || c.Registry != "") {
		return nil, fault.New(fault.InvalidArgument, "credential specs are for Windows only")
	}
	if s := in.SELinuxContext; s != nil {
		out.SELinux = &cloud.SELinuxContext{Disable: s.Disable, User: s.User, Role: s.Role, Type: s.Type, Level: s.Level}
	}
	if s := in.Seccomp; s != nil {
		out.Seccomp = &cloud.Seccomp{Mode: cloud.SeccompMode(s.Mode), Profile: s.Profile}
		switch s.Mode {
		case "", apiswarm.SeccompModeDefault, apiswarm.SeccompModeUnconfined:
		case apiswarm.SeccompModeCustom:
			if !json.Valid(s.Profile) {
				return nil, fault.New(fault.InvalidArgument, "invalid seccomp profile: want a JSON document")
			}
		default:
			return nil, fault.New(fault.InvalidArgument, "invalid seccomp mode %q: it must be default, unconfined or custom", string(s.Mode))
		}
	}
	if a := in.AppArmor; a != nil {
		out.AppArmor = cloud.AppArmorMode(cmp.Or(a.Mode, apiswarm.AppArmorModeDefault))
		if a.Mode != "" && a.Mode != apiswarm.AppArmorModeDefault && a.Mode != apiswarm.AppArmorModeDisabled {
			return nil, fault.New(fault.InvalidArgument, "invalid AppArmor mode %q: it must be default or disabled", string(a.Mode))
		}
	}
	return out, nil
}

func wirePrivileges(p *cloud.Privileges) *apiswarm.Privileges {
	if p == nil {
		return nil
	}
	out := &apiswarm.Privileges{NoNewPrivileges: p.NoNewPrivileges}
	if s := p.SELinux; s != nil {
		out.SELinuxContext = &apiswarm.SELinuxContext{Disable: s.Disable, User: s.User, Role: s.Role, Type: s.Type, Level: s.Level}
	}
	if s := p.Seccomp; s != nil {
		out.Seccomp = &apiswarm.SeccompOpts{Mode: apiswarm.SeccompMode(cmp.Or(s.Mode, cloud.SeccompDefault)), Profile: s.Profile}
	}
	if p.AppArmor != "" {
		out.AppArmor = &apiswarm.AppArmorOpts{Mode: apiswarm.AppArmorMode(p.AppArmor)}
	}
	return out
}
