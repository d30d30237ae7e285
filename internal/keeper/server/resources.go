package server

import (
	"encoding/json"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// mergeResources returns have with what the OCI document names changed.
func mergeResources(have *cgroups.Resources, doc json.RawMessage) (*cgroups.Resources, error) {
	var r specs.LinuxResources
	if err := json.Unmarshal(doc, &r); err != nil {
		return nil, fault.New(fault.InvalidArgument, "malformed resources: %w", err)
	}
	out := *have
	if m := r.Memory; m != nil {
		set(&out.Memory, m.Limit)
		set(&out.MemoryReservation, m.Reservation)
		set(&out.MemorySwap, m.Swap)
		if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
			out.MemorySwap = 0 // no limit without one on memory
		}
		if m.DisableOOMKiller != nil {
			out.OomKillDisable = *m.DisableOOMKiller
		}
	}
	if c := r.CPU; c != nil {
		set(&out.CpuQuota, c.Quota)
		set(&out.CpuPeriod, c.Period)
		set(&out.CpuRtRuntime, c.RealtimeRuntime)
		set(&out.CpuRtPeriod, c.RealtimePeriod)
		if c.Burst != nil {
			out.CpuBurst = c.Burst
		}
		if c.Idle != nil {
			out.CPUIdle = c.Idle
		}
		if c.Shares != nil {
			out.CpuShares = *c.Shares
			out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		if c.Cpus != "" {
			out.CpusetCpus = c.Cpus
		}
		if c.Mems != "" {
			out.CpusetMems = c.Mems
		}
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		out.PidsLimit = p.Limit
	}
	if b := r.BlockIO; b != nil {
		set(&out.BlkioWeight, b.Weight)
		set(&out.BlkioLeafWeight, b.LeafWeight)
		throttle(&out.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice)
		throttle(&out.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice)
		throttle(&out.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice)
		throttle(&out.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice)
	}
	if r.Unified != nil {
		out.Unified = r.Unified
	}
	// Device rules cannot change so, and setting them again would undo what others added since.
	out.SkipDevices = true
	// Whether it is paused is no limit: libcontainer would freeze or thaw it.
	out.Freezer = cgroups.Undefined
	return &out, nil
}

func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

func throttle(dst *[]*cgroups.ThrottleDevice, list []specs.LinuxThrottleDevice) {
	if list == nil {
		return
	}
	*dst = nil
	for _, d := range list {
		*dst = append(*dst, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
}
