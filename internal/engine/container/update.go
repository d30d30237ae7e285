package container

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Rename gives a container another name.
func (m *Manager) Rename(ctx context.Context, id, name string) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return fault.New(fault.InvalidArgument, "Neither old nor new names may be empty")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.rec.Config.Name
	if name == old {
		return fault.New(fault.InvalidArgument, "Renaming a container with the same name as its current name")
	}
	if c.rec.State.Status == StatusRemoving {
		return fault.New(fault.Conflict, "container %s is being removed", id)
	}
	if _, err := m.reserve(name, c.id); err != nil {
		return err
	}
	c.rec.Config.Name = name
	if err := c.save(); err != nil {
		c.rec.Config.Name = old
		c.publish()
		m.release(name, c.id)
		return err
	}
	m.release(old, c.id)
	if c.rec.State.Running && !c.rec.State.Restarting {
		m.renameInNetworks(context.WithoutCancel(ctx), c)
	}
	m.event(&c.rec.Container, "rename", "oldName", "/"+old)
	return nil
}

// renameInNetworks makes the networks answer for the new name.
func (m *Manager) renameInNetworks(ctx context.Context, c *ctr) {
	r, ok := m.Networks.(interface {
		Rename(ctx context.Context, id, name string) error
	})
	if !ok {
		return
	}
	if err := r.Rename(ctx, c.id, c.rec.Config.Name); err != nil {
		m.log.Error("the networks keep the old name of a renamed container", "container", c.id, "error", err)
	}
}

// Update changes the limits and restart policy of a container, at once if it runs. Zero values are left as they are.
func (m *Manager) Update(ctx context.Context, id string, r Resources, p *RestartPolicy) (warnings []string, err error) {
	c, err := m.find(id)
	if err != nil {
		return nil, err
	}
	if p != nil {
		if err := validateRestart(*p); err != nil {
			return nil, err
		}
	}
	if warnings, err = validateResources(&r, &m.host, true); err != nil {
		return warnings, err
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.rec.State
	if s.Status == StatusRemoving || s.Dead {
		return warnings, fault.New(fault.Conflict, "Cannot update container %s: Container is marked for removal and cannot be \"update\".", c.id)
	}
	if p != nil && c.rec.Config.Host.AutoRemove && p.Name != "" && p.Name != "no" {
		return warnings, fault.New(fault.Conflict, "Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	before := c.rec.Config.Host
	merged, err := mergeResources(before.Resources, r)
	if err != nil {
		return warnings, errorf("Cannot update container %s: %w", c.id, err)
	}
	if s.Running && !s.Restarting {
		spec, err := resources(&merged, nil)
		if err != nil {
			return warnings, err
		}
		raw, err := json.Marshal(spec)
		if err != nil {
			return warnings, err
		}
		// One that has ended just now, and is not known to have, gets them with its next start.
		if err := m.Keeper.Update(ctx, c.id, raw); err != nil && !fault.Is(err, fault.Conflict) {
			return warnings, errorf("Cannot update container %s: %w", c.id, err)
		}
	}
	c.rec.Config.Host.Resources = merged
	if p != nil && p.Name != "" {
		c.rec.Config.Host.Restart = *p
	}
	if err := c.save(); err != nil {
		c.rec.Config.Host = before
		c.publish()
		return warnings, err
	}
	m.event(&c.rec.Container, "update")
	return warnings, nil
}

func mergeResources(have, want Resources) (Resources, error) {
	bad := func(text string) (Resources, error) { return have, fault.New(fault.Conflict, "%s", text) }
	switch {
	case want.NanoCPUs > 0 && (have.CPUPeriod > 0 || have.CPUQuota > 0):
		return bad("Conflicting options: Nano CPUs cannot be updated as CPU Period or Quota has already been set")
	case want.CPUPeriod > 0 && have.NanoCPUs > 0:
		return bad("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case want.CPUQuota > 0 && have.NanoCPUs > 0:
		return bad("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case want.Memory > 0 && have.MemorySwap > 0 && want.MemorySwap == 0 && want.Memory > have.MemorySwap:
		return bad("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	out := have
	out.NanoCPUs = cmp.Or(want.NanoCPUs, have.NanoCPUs)
	out.CPUShares = cmp.Or(want.CPUShares, have.CPUShares)
	out.CPUPeriod = cmp.Or(want.CPUPeriod, have.CPUPeriod)
	out.CPUQuota = cmp.Or(want.CPUQuota, have.CPUQuota)
	out.CPURealtimePeriod = cmp.Or(want.CPURealtimePeriod, have.CPURealtimePeriod)
	out.CPURealtimeRuntime = cmp.Or(want.CPURealtimeRuntime, have.CPURealtimeRuntime)
	out.CpusetCpus = cmp.Or(want.CpusetCpus, have.CpusetCpus)
	out.CpusetMems = cmp.Or(want.CpusetMems, have.CpusetMems)
	out.Memory = cmp.Or(want.Memory, have.Memory)
	out.MemorySwap = cmp.Or(want.MemorySwap, have.MemorySwap)
	out.MemoryReservation = cmp.Or(want.MemoryReservation, have.MemoryReservation)
	out.PidsLimit = cmp.Or(want.PidsLimit, have.PidsLimit)
	out.BlkioWeight = cmp.Or(want.BlkioWeight, have.BlkioWeight)
	if want.BlkioWeightDevice != nil {
		out.BlkioWeightDevice = want.BlkioWeightDevice
	}
	for _, list := range []struct {
		out  *[]ThrottleDevice
		want []ThrottleDevice
	}{
		{&out.BlkioReadBps, want.BlkioReadBps}, {&out.BlkioWriteBps, want.BlkioWriteBps},
		{&out.BlkioReadIOps, want.BlkioReadIOps}, {&out.BlkioWriteIOps, want.BlkioWriteIOps},
	} {
		if list.want != nil {
			*list.out = list.want
		}
	}
	return out, nil
}
