package docker

import (
	"strings"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// statsInterval is the time between two samples of a stats stream.
const statsInterval = time.Second

// stats answers with one sample, or one a second. Each carries the CPU counters of the one before, from which clients
// compute the load; one-shot leaves them out and needs not wait for a second sample.
func (a *containerAPI) stats(w *response, r *request) error {
	id := r.PathValue("id")
	c, err := a.backend.Get(id)
	if err != nil {
		return err
	}
	stream, oneShot := r.flagOr("stream", true), r.version >= 1041 && r.flag("one-shot")
	w.Header().Set("Content-Type", "application/json")
	out := w.flushed()
	var previous container.Stats
	for first := true; ; first = false {
		sample, err := a.backend.Stats(r.Context(), c.ID)
		switch {
		case fault.Is(err, fault.NotFound) && !first:
			return nil // removed: the stream ends
		case (fault.Is(err, fault.Conflict) || fault.Is(err, fault.FailedPrecondition)) && !c.State.Running:
			sample = container.Stats{} // does not run: zeros
		case err != nil:
			return err
		}
		sample.ID, sample.Name = c.ID, "/"+strings.TrimPrefix(c.Config.Name, "/")
		// A client that asked for one sample gets the second, which has something to compare with.
		running := !sample.Read.IsZero()
		if stream || oneShot || !first || !running {
			body, err := marshal(statsResponse(&previous, &sample))
			if err != nil {
				return fault.New(fault.Internal, "encode statistics: %w", err)
			}
			if _, err := out.Write(body); err != nil || !stream {
				return nil //nolint:nilerr // the client is gone
			}
		}
		previous = sample
		select {
		case <-r.Context().Done():
			return nil
		case <-time.After(statsInterval):
		}
		if current, err := a.backend.Get(c.ID); err == nil {
			c = current
		} else {
			return nil //nolint:nilerr // removed: the stream ends
		}
	}
}

func statsResponse(previous, s *container.Stats) apicontainer.StatsResponse {
	out := apicontainer.StatsResponse{
		ID: s.ID, Name: s.Name, OSType: "linux", Read: s.Read, PreRead: previous.Read,
		CPUStats: cpuStats(s), PreCPUStats: cpuStats(previous),
		MemoryStats: apicontainer.MemoryStats{Usage: s.Memory.Usage, MaxUsage: s.Memory.MaxUsage, Stats: s.Memory.Stats, Failcnt: s.Memory.Failcnt, Limit: s.Memory.Limit},
		PidsStats:   apicontainer.PidsStats{Current: s.Pids, Limit: s.PidsMax},
		BlkioStats:  apicontainer.BlkioStats{IoServiceBytesRecursive: blkio(s.BlkioServiceBytes), IoServicedRecursive: blkio(s.BlkioServiced)},
	}
	if !s.Read.IsZero() { // of one that runs; a client that walks the lists finds them there
		b := &out.BlkioStats
		for _, l := range []*[]apicontainer.BlkioStatEntry{&b.IoServiceBytesRecursive, &b.IoServicedRecursive, &b.IoQueuedRecursive, &b.IoServiceTimeRecursive,
			&b.IoWaitTimeRecursive, &b.IoMergedRecursive, &b.IoTimeRecursive, &b.SectorsRecursive} {
			*l = list(*l)
		}
	}
	for name, n := range s.Networks {
		if out.Networks == nil {
			out.Networks = map[string]apicontainer.NetworkStats{}
		}
		out.Networks[name] = apicontainer.NetworkStats{RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped}
	}
	return out
}

func cpuStats(s *container.Stats) apicontainer.CPUStats {
	return apicontainer.CPUStats{
		CPUUsage:    apicontainer.CPUUsage{TotalUsage: s.CPU.Total, PercpuUsage: s.CPU.PerCPU, UsageInKernelmode: s.CPU.Kernel, UsageInUsermode: s.CPU.User},
		SystemUsage: s.CPU.System, OnlineCPUs: uint32(s.NumCPU), //nolint:gosec // a number of CPUs
		ThrottlingData: apicontainer.ThrottlingData{Periods: s.CPU.Periods, ThrottledPeriods: s.CPU.ThrottledPeriods, ThrottledTime: s.CPU.ThrottledTime},
	}
}

func blkio(in []container.BlkioEntry) (out []apicontainer.BlkioStatEntry) {
	for _, e := range in {
		out = append(out, apicontainer.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}
