package control

import (
	"math"
	"net"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/fault"
)

var (
	dnsName  = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[a-zA-Z0-9]+)*$`)
	blobName = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?$`)
	// imageRef is deliberately loose: the engine that pulls has the last word on references.
	imageRef = regexp.MustCompile(`^[a-z0-9A-Z](?:[a-zA-Z0-9._:/@-]*[a-zA-Z0-9])?$`)
)

const (
	minCPU           = 1_000_000 // 0.001 of a core
	minMemory        = 4 << 20
	maxReplicas      = 1 << 20
	minHealthTime    = time.Millisecond
	minCertExpiry    = time.Hour
	maxHeartbeat     = time.Minute
	maxServiceLabels = 1 << 16 // bytes of all labels together
)

func invalid(format string, args ...any) error {
	return fault.New(fault.InvalidArgument, format, args...)
}

func validateName(name string, pattern *regexp.Regexp, say string) error {
	if name == "" {
		return invalid("name must be provided")
	}
	if len(name) > 64 || !pattern.MatchString(name) {
		return invalid("%s", say)
	}
	return nil
}

// ValidateCluster checks a cluster's specification.
func ValidateCluster(s *cloud.ClusterSpec) error {
	if s.HeartbeatPeriod < 0 || s.HeartbeatPeriod > maxHeartbeat {
		return invalid("heartbeat period must be between 0 and %s: got %s", maxHeartbeat, s.HeartbeatPeriod)
	}
	if s.CertExpiry != 0 && s.CertExpiry < minCertExpiry {
		return invalid("certificate expiry cannot be less than %s", minCertExpiry)
	}
	if s.TaskHistoryLimit < -1 {
		return invalid("task history limit cannot be less than -1")
	}
	for i, p := range s.AddressPools {
		if !p.IsValid() || !p.Addr().Is4() {
			return invalid("default address pool %s: want an IPv4 network in CIDR notation", p)
		}
		if s.SubnetSize != 0 && (s.SubnetSize < p.Bits() || s.SubnetSize > 29) {
			return invalid("invalid CIDR: %q. Subnet size is too small for pool: %d", p, s.SubnetSize)
		}
		for _, o := range s.AddressPools[:i] {
			if p.Overlaps(o) {
				return invalid("default address pools overlap: %s and %s", o, p)
			}
		}
	}
	if s.DataPathPort != 0 && (s.DataPathPort < 1024 || s.DataPathPort > 49151) {
		return invalid("Datapath port number is not in valid range (1024-49151): %d", s.DataPathPort)
	}
	return nil
}

// ValidateNode checks a node's specification.
func ValidateNode(s *cloud.NodeSpec) error {
	switch s.Role {
	case cloud.RoleWorker, cloud.RoleManager:
	default:
		return invalid("invalid role specified: %q (worker or manager)", s.Role)
	}
	switch s.Availability {
	case cloud.AvailabilityActive, cloud.AvailabilityPause, cloud.AvailabilityDrain:
	default:
		return invalid("invalid availability specified: %q (active, pause or drain)", s.Availability)
	}
	return nil
}

// ValidateNetwork checks a network's specification.
func ValidateNetwork(s *cloud.NetworkSpec) error {
	if err := validateName(s.Name, blobName, "network name must be valid: letters, digits, '.', '_' and '-', at most 64 of them"); err != nil {
		return err
	}
	if s.Driver != cloud.DriverOverlay {
		return fault.New(fault.NotFound, "plugin %q not found: networks of the cluster have the driver overlay", s.Driver)
	}
	if s.Ingress && s.Attachable {
		return invalid("ingress network cannot be attachable")
	}
	if s.Ingress && s.Internal {
		return invalid("ingress network cannot be internal")
	}
	if _, ok := s.Options["encrypted"]; ok {
		return fault.New(fault.NotImplemented, "encrypted overlay networks are not supported yet: leave out --opt encrypted")
	}
	if v, ok := s.Options["com.docker.network.driver.mtu"]; ok {
		if n, err := strconv.Atoi(v); err != nil || n < 576 || n > 65535 {
			return invalid("invalid MTU %q: want a number from 576 to 65535", v)
		}
	}
	for i, c := range s.IPAM {
		if err := validateIPAM(c); err != nil {
			return err
		}
		for _, o := range s.IPAM[:i] {
			if c.Subnet.IsValid() && o.Subnet.IsValid() && c.Subnet.Overlaps(o.Subnet) {
				return invalid("invalid pool request: Pool overlaps with other one on this address space: %s and %s", o.Subnet, c.Subnet)
			}
		}
	}
	return nil
}

func validateIPAM(c cloud.IPAMConfig) error {
	if !c.Subnet.IsValid() {
		if c.Gateway.IsValid() || c.Range.IsValid() || len(c.Aux) > 0 {
			return invalid("ipam configuration: a gateway, range or auxiliary address needs its subnet")
		}
		return nil
	}
	if c.Subnet != c.Subnet.Masked() {
		return invalid("ipam configuration: invalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
	}
	if a := c.Subnet.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsUnspecified() || a.Is4In6() {
		return invalid("ipam configuration: invalid subnet %s", c.Subnet)
	}
	if c.Subnet.Addr().Is4() && (c.Subnet.Bits() > 29 || c.Subnet.Bits() < 8) || c.Subnet.Addr().Is6() && (c.Subnet.Bits() > 120 || c.Subnet.Bits() < 16) {
		return invalid("ipam configuration: invalid subnet %s: its size is out of range", c.Subnet)
	}
	if c.Range.IsValid() && (c.Range.Bits() < c.Subnet.Bits() || !c.Subnet.Contains(c.Range.Addr())) {
		return invalid("ipam configuration: subnet %s does not contain range %s", c.Subnet, c.Range)
	}
	if c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway) {
		return invalid("ipam configuration: subnet %s does not contain gateway %s", c.Subnet, c.Gateway)
	}
	for name, a := range c.Aux {
		if !a.IsValid() || !c.Subnet.Contains(a) {
			return invalid("ipam configuration: subnet %s does not contain auxiliary address %s (%s)", c.Subnet, a, name)
		}
	}
	return nil
}

// ValidateService checks every field of a service's specification that can be checked without the state.
func ValidateService(s *cloud.ServiceSpec) error {
	if s.Name == "" {
		return invalid("meta: name must be provided")
	}
	if !dnsName.MatchString(s.Name) {
		return invalid("name must be valid as a DNS name component")
	}
	if len(s.Name) > 63 {
		return invalid("name must be 63 characters or fewer")
	}
	if err := validateLabels(s.Labels); err != nil {
		return err
	}
	if s.Mode.Replicas > math.MaxInt64 {
		return invalid("Number of replicas must be non-negative")
	}
	if s.Mode.Replicas > maxReplicas {
		return invalid("Number of replicas must not be above %d", maxReplicas)
	}
	if s.Mode.MaxConcurrent > maxReplicas {
		return invalid("Maximum concurrent jobs must not be negative, nor above %d", maxReplicas)
	}
	if s.Mode.MaxConcurrent != 0 && (s.Mode.Global || !s.Mode.Job) {
		return invalid("max-concurrent can only be used with replicated-job mode")
	}
	if s.Mode.Global && s.Mode.Replicas != 0 {
		return invalid("replicas can only be used with replicated or replicated-job mode")
	}
	if s.Mode.Global && s.Task.Placement.MaxReplicas != 0 {
		return invalid("replicas-max-per-node can only be used with replicated or replicated-job mode")
	}
	if err := validateTask(&s.Task); err != nil {
		return err
	}
	if err := validateUpdate(&s.Update, "update"); err != nil {
		return err
	}
	if err := validateUpdate(&s.Rollback, "rollback"); err != nil {
		return err
	}
	if s.Rollback.FailureAction == cloud.FailureRollback {
		return invalid("TaskSpec: a rollback that fails cannot be rolled back: use pause or continue")
	}
	return validateEndpoint(&s.Endpoint)
}

func validateLabels(labels map[string]string) error {
	size := 0
	for k, v := range labels {
		if k == "" {
			return invalid("invalid label: the key is empty")
		}
		size += len(k) + len(v)
	}
	if size > maxServiceLabels {
		return invalid("labels are too large: %d bytes, at most %d are kept", size, maxServiceLabels)
	}
	return nil
}

func validateTask(t *cloud.TaskSpec) error {
	for _, r := range []*cloud.Resources{&t.Limits, &t.Reservations} {
		if r.NanoCPUs != 0 && r.NanoCPUs < minCPU {
			return invalid("invalid cpu value %g: Must be at least %g", float64(r.NanoCPUs)/1e9, minCPU/1e9)
		}
		if r.MemoryBytes != 0 && r.MemoryBytes < minMemory {
			return invalid("invalid memory value %d: Must be at least 4MiB", r.MemoryBytes)
		}
		if r.Pids < 0 {
			return invalid("invalid pids limit %d: Must not be negative", r.Pids)
		}
	}
	for _, g := range t.Reservations.Generic {
		if g.Named() || g.Kind == "" || g.Amount < 0 {
			return invalid("invalid argument for resource %s: ask for a number of them", g.Kind)
		}
	}
	if t.SwapBytes != nil && (t.Limits.MemoryBytes == 0 || *t.SwapBytes < -1) {
		return invalid("memory swap provided, but no memory-limit was set, or the swap is negative")
	}
	if s := t.MemorySwappiness; s != nil && (*s < -1 || *s > 100) {
		return invalid("invalid value: %d, valid memory swappiness range is 0-100", *s)
	}
	if l, r := t.Limits, t.Reservations; l.MemoryBytes != 0 && r.MemoryBytes > l.MemoryBytes || l.NanoCPUs != 0 && r.NanoCPUs > l.NanoCPUs {
		return invalid("a reservation is above its limit: no task could use what is reserved for it")
	}
	p := t.Restart
	switch p.Condition {
	case "", cloud.RestartNone, cloud.RestartOnFailure, cloud.RestartAny:
	default:
		return invalid("invalid RestartCondition: %q", p.Condition)
	}
	if p.Delay != nil && *p.Delay < 0 {
		return invalid("TaskSpec: restart-delay cannot be negative")
	}
	if p.Window < 0 {
		return invalid("TaskSpec: restart-window cannot be negative")
	}
	if _, err := cloud.ParseConstraints(t.Placement.Constraints); err != nil {
		return err
	}
	for _, by := range t.Placement.SpreadOver {
		if _, known := new(cloud.Node).Value(by); !known {
			return invalid("invalid placement preference %q: want spread over node.labels.NAME, engine.labels.NAME, node.hostname or another key of constraints", by)
		}
	}
	for _, n := range t.Networks {
		if n.Target == "" {
			return invalid("a network is attached without a name")
		}
		for _, alias := range n.Aliases {
			if !dnsName.MatchString(strings.ReplaceAll(alias, ".", "-")) {
				return invalid("network alias %q must be valid as a DNS name", alias)
			}
		}
	}
	return validateContainer(&t.Container)
}

func validateContainer(c *cloud.ContainerSpec) error {
	if c.Image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if !imageRef.MatchString(c.Image) || len(c.Image) > 512 {
		return invalid("ContainerSpec: %q is not a valid repository/tag", c.Image)
	}
	if err := validateLabels(c.Labels); err != nil {
		return err
	}
	for _, e := range c.Env {
		if name, _, _ := strings.Cut(e, "="); name == "" || strings.ContainsRune(e, 0) {
			return invalid("invalid environment variable: %q", e)
		}
	}
	if c.Dir != "" && !path.IsAbs(c.Dir) {
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.Dir)
	}
	if c.StopGracePeriod != nil && *c.StopGracePeriod < 0 {
		return invalid("ContainerSpec: StopGracePeriod cannot be negative")
	}
	if err := validateMounts(c.Mounts); err != nil {
		return err
	}
	if err := validateHealth(c.Health); err != nil {
		return err
	}
	for _, h := range c.Hosts {
		fields := strings.Fields(h)
		if len(fields) < 2 {
			return invalid("extra host %q: want an address and names", h)
		}
		if _, err := netip.ParseAddr(fields[0]); err != nil && fields[0] != "host-gateway" {
			return invalid("extra host %q: %q is no address", h, fields[0])
		}
	}
	for _, d := range c.DNS.Servers {
		if net.ParseIP(d) == nil {
			return invalid("ContainerSpec: %q is not an address of a name server", d)
		}
	}
	for _, u := range c.Ulimits {
		if u.Name == "" || u.Soft > u.Hard && u.Hard >= 0 {
			return invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	if err := validateFiles("secret", c.Secrets); err != nil {
		return err
	}
	if err := validateFiles("config", c.Configs); err != nil {
		return err
	}
	if _, err := c.ExpandTemplates(new(cloud.TemplateContext)); err != nil && !strings.Contains(err.Error(), "map has no entry") {
		return err
	}
	return nil
}

func validateMounts(mounts []cloud.Mount) error {
	seen := map[string]bool{}
	for _, m := range mounts {
		templated := strings.Contains(m.Target+m.Source, "{{")
		if m.Target == "" {
			return invalid("invalid mount target, must not be empty")
		}
		if !templated && (!path.IsAbs(m.Target) || path.Clean(m.Target) == "/") {
			return invalid("invalid mount target, must be an absolute path other than '/': %s", m.Target)
		}
		if seen[path.Clean(m.Target)] {
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		seen[path.Clean(m.Target)] = true
		switch m.Type {
		case cloud.MountBind:
			if !templated && !path.IsAbs(m.Source) {
				return invalid("invalid bind mount source, must be an absolute path: %s", m.Source)
			}
			switch m.Propagation {
			case "", "private", "rprivate", "shared", "rshared", "slave", "rslave":
			default:
				return invalid("invalid mount propagation: %q", m.Propagation)
			}
		case cloud.MountVolume:
			if path.IsAbs(m.Source) {
				return invalid("invalid volume mount source, must not be an absolute path: %s", m.Source)
			}
			if m.Source != "" && !templated && !blobName.MatchString(m.Source) {
				return invalid("invalid volume mount source, must be a volume name: %q", m.Source)
			}
			if path.IsAbs(m.Subpath) || strings.HasPrefix(path.Clean(m.Subpath), "..") {
				return invalid("invalid volume subpath, must be relative and stay within the volume: %s", m.Subpath)
			}
		case cloud.MountTmpfs:
			if m.Source != "" {
				return invalid("invalid tmpfs source, source must be empty")
			}
			if m.TmpfsSize < 0 {
				return invalid("invalid tmpfs size %d: must not be negative", m.TmpfsSize)
			}
		case cloud.MountImage:
			if m.Source == "" {
				return invalid("invalid image mount source, must not be empty")
			}
		default:
			return invalid("invalid mount type: %q", m.Type)
		}
	}
	return nil
}

func validateHealth(h *cloud.HealthConfig) error {
	if h == nil {
		return nil
	}
	for name, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < minHealthTime {
			return invalid("ContainerSpec: %s in HealthConfig cannot be less than %s", name, minHealthTime)
		}
	}
	if h.Retries < 0 {
		return invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "NONE":
		case "CMD", "CMD-SHELL":
			if len(h.Test) < 2 {
				return invalid("ContainerSpec: HealthConfig has no command")
			}
		default:
			return invalid("ContainerSpec: unknown type %q of health check: want NONE, CMD or CMD-SHELL", h.Test[0])
		}
	}
	return nil
}

func validateFiles(kind string, refs []cloud.FileReference) error {
	seen := map[string]string{}
	for _, r := range refs {
		if r.ID == "" && r.Name == "" {
			return invalid("malformed %s reference", kind)
		}
		if r.Path == "" {
			return invalid("malformed %s reference, no target provided", kind)
		}
		clean := path.Clean(r.Path)
		if clean == "." || clean == "/" || clean == ".." || strings.HasPrefix(clean, "../") {
			return invalid("malformed file %s reference, invalid target file name provided", kind)
		}
		if prev, ok := seen[clean]; ok {
			return invalid("%s references '%s' and '%s' have a conflicting target: '%s'", kind, prev, r.Name, clean)
		}
		seen[clean] = r.Name
		for _, id := range []string{r.UID, r.GID} {
			if id == "" {
				continue
			}
			if _, err := strconv.ParseUint(id, 10, 31); err != nil {
				return invalid("malformed %s reference: %q is no user or group number", kind, id)
			}
		}
	}
	return nil
}

func validateUpdate(u *cloud.UpdateConfig, flag string) error {
	if u.Parallelism > math.MaxInt64 {
		return invalid("TaskSpec: %s-parallelism cannot be negative", flag)
	}
	if u.Delay < 0 {
		return invalid("TaskSpec: %s-delay cannot be negative", flag)
	}
	if u.Monitor < 0 {
		return invalid("TaskSpec: %s-monitor cannot be negative", flag)
	}
	if !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1) { // NaN is neither
		return invalid("TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1", flag)
	}
	switch u.FailureAction {
	case "", cloud.FailurePause, cloud.FailureContinue, cloud.FailureRollback:
	default:
		return invalid("unrecognized update failure action %q", u.FailureAction)
	}
	switch u.Order {
	case "", cloud.StopFirst, cloud.StartFirst:
	default:
		return invalid("unrecognized update order %q", u.Order)
	}
	return nil
}

func validateEndpoint(e *cloud.EndpointSpec) error {
	switch e.Mode {
	case "", cloud.EndpointVIP, cloud.EndpointDNSRR:
	default:
		return invalid("invalid endpoint mode %q: want vip or dnsrr", e.Mode)
	}
	type published struct {
		protocol cloud.Protocol
		port     uint16
	}
	seen := map[published]bool{}
	for _, p := range e.Ports {
		switch p.Protocol {
		case "", cloud.TCP, cloud.UDP, cloud.SCTP:
		default:
			return invalid("invalid protocol %q of a published port: want tcp, udp or sctp", p.Protocol)
		}
		switch p.Mode {
		case "", cloud.PublishIngress, cloud.PublishHost:
		default:
			return invalid("invalid publish mode %q: want ingress or host", p.Mode)
		}
		if p.Target == 0 {
			return invalid("invalid target port 0: a published port names the port of the tasks")
		}
		if e.Mode == cloud.EndpointDNSRR && p.IngressMode() {
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		if p.Published == 0 {
			continue
		}
		k := published{protocol(p), p.Published}
		if seen[k] {
			return invalid("EndpointSpec: duplicate published ports provided")
		}
		seen[k] = true
	}
	return nil
}
