package docker

import (
	"math"
	"net/http"
	"net/netip"
	"time"

	apiswarm "github.com/moby/moby/api/types/swarm"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/control"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// swarmAPI serves the cluster as a whole, and this node's membership.
type swarmAPI struct{ swarm Swarm }

func (a *swarmAPI) routes() []route {
	return []route{
		{method: "GET", pattern: "/swarm", serve: a.inspect},
		{method: "POST", pattern: "/swarm/init", serve: a.init},
		{method: "POST", pattern: "/swarm/join", serve: a.join},
		{method: "POST", pattern: "/swarm/leave", serve: a.leave},
		{method: "POST", pattern: "/swarm/update", serve: a.update},
		{method: "GET", pattern: "/swarm/unlockkey", serve: a.unlockKey},
		{method: "POST", pattern: "/swarm/unlock", serve: a.unlock},
	}
}

func (a *swarmAPI) init(w *response, r *request) error {
	var body apiswarm.InitRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	if r.version < 1039 {
		body.DefaultAddrPool, body.SubnetSize = nil, 0
	}
	if r.version < 1040 {
		body.DataPathPort = 0
	}
	if body.DataPathPort != 0 && (body.DataPathPort < 1024 || body.DataPathPort > 49151) {
		return fault.New(fault.InvalidArgument, "Invalid data path port number %d: use a port from 1024 to 49151", body.DataPathPort)
	}
	if body.SubnetSize > 30 {
		return fault.New(fault.InvalidArgument, "invalid subnet size %d: a network needs a prefix of 1 to 29 bits", body.SubnetSize)
	}
	availability, err := availabilityOf(body.Availability)
	if err != nil {
		return err
	}
	spec, err := clusterSpec(&body.Spec, nil)
	if err != nil {
		return err
	}
	spec.AutoLock = spec.AutoLock || body.AutoLockManagers
	id, err := a.swarm.Init(r.Context(), SwarmInit{
		ListenAddr: body.ListenAddr, AdvertiseAddr: body.AdvertiseAddr, DataPathAddr: body.DataPathAddr,
		DataPathPort: uint16(body.DataPathPort), Pools: body.DefaultAddrPool, SubnetSize: int(body.SubnetSize),
		ForceNewCluster: body.ForceNewCluster, Availability: availability, Spec: spec,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, id)
}

func (a *swarmAPI) join(w *response, r *request) error {
	var body apiswarm.JoinRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	switch {
	case len(body.RemoteAddrs) == 0:
		return fault.New(fault.InvalidArgument, "at least 1 RemoteAddr is required to join")
	case body.JoinToken == "":
		return fault.New(fault.InvalidArgument, "a join token is needed: `docker swarm join-token worker` on a manager shows one")
	}
	availability, err := availabilityOf(body.Availability)
	if err != nil {
		return err
	}
	return ok(w, a.swarm.Join(r.Context(), SwarmJoin{
		ListenAddr: body.ListenAddr, AdvertiseAddr: body.AdvertiseAddr, DataPathAddr: body.DataPathAddr,
		RemoteAddrs: body.RemoteAddrs, Token: body.JoinToken, Availability: availability,
	}))
}

func (a *swarmAPI) leave(w *response, r *request) error {
	return ok(w, a.swarm.Leave(r.Context(), r.flag("force")))
}

func (a *swarmAPI) inspect(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	c, err := cluster.GetCluster(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apiswarm.Swarm{ClusterInfo: wireCluster(c), JoinTokens: apiswarm.JoinTokens{Worker: c.Tokens.Worker, Manager: c.Tokens.Manager}})
}

func (a *swarmAPI) update(w *response, r *request) error {
	var body apiswarm.Spec
	if err := r.decode(&body); err != nil {
		return err
	}
	version, err := r.objectVersion("swarm")
	if err != nil {
		return err
	}
	worker, err := r.strictBool("rotateWorkerToken")
	if err != nil {
		return err
	}
	manager, err := r.strictBool("rotateManagerToken")
	if err != nil {
		return err
	}
	unlock, err := r.strictBool("rotateManagerUnlockKey")
	if err != nil {
		return err
	}
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	current, err := cluster.GetCluster(r.Context())
	if err != nil {
		return err
	}
	spec, err := clusterSpec(&body, &current.Spec)
	if err != nil {
		return err
	}
	return ok(w, cluster.UpdateCluster(r.Context(), version, control.ClusterChange{
		Spec: spec, RotateWorkerToken: worker, RotateManagerToken: manager, RotateUnlockKey: unlock,
		CACert: []byte(body.CAConfig.SigningCACert), CAKey: []byte(body.CAConfig.SigningCAKey),
	}))
}

// unlockKey shows the key that managers are unlocked with, "" if they do not lock themselves.
func (a *swarmAPI) unlockKey(w *response, r *request) error {
	cluster, err := a.swarm.Cluster()
	if err != nil {
		return err
	}
	c, err := cluster.GetCluster(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, apiswarm.UnlockKeyResponse{UnlockKey: c.UnlockKey})
}

func (a *swarmAPI) unlock(w *response, r *request) error {
	var body apiswarm.UnlockRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	return ok(w, a.swarm.Unlock(r.Context(), body.UnlockKey))
}

// clusterSpec turns a specification into the domain's. What the wire does not carry is taken from current.
func clusterSpec(in *apiswarm.Spec, current *cloud.ClusterSpec) (cloud.ClusterSpec, error) {
	out := cloud.ClusterSpec{Name: "default"}
	if current != nil {
		out = *current
	}
	ca := in.CAConfig
	switch {
	case len(ca.ExternalCAs) > 0:
		return out, fault.New(fault.NotImplemented, "external certificate authorities are not implemented: "+
			"give the cluster the certificate and key of an authority of its own (swarm ca --rotate --ca-cert FILE --ca-key FILE)")
	case current == nil && (ca.SigningCACert != "" || ca.SigningCAKey != "" || ca.ForceRotate != 0):
		return out, fault.New(fault.NotImplemented, "a new swarm makes its own certificate authority: replace it afterwards (swarm ca --rotate)")
	case ca.NodeCertExpiry != 0 && ca.NodeCertExpiry < time.Hour:
		return out, fault.New(fault.InvalidArgument, "minimum certificate expiry time is: %s", time.Hour)
	case in.Dispatcher.HeartbeatPeriod < 0:
		return out, fault.New(fault.InvalidArgument, "heartbeat time period cannot be a negative duration")
	case in.TaskDefaults.LogDriver != nil && in.TaskDefaults.LogDriver.Name != "" && in.TaskDefaults.LogDriver.Name != "json-file":
		return out, fault.New(fault.NotImplemented, "the log driver %q is not implemented as the cluster's default", in.TaskDefaults.LogDriver.Name)
	}
	if in.Name != "" {
		out.Name = in.Name
	}
	if in.Labels != nil {
		out.Labels = in.Labels
	}
	if in.Orchestration.TaskHistoryRetentionLimit != nil {
		limit := *in.Orchestration.TaskHistoryRetentionLimit
		if limit < 0 || limit > math.MaxInt32 {
			return out, fault.New(fault.InvalidArgument, "invalid task history limit %d", limit)
		}
		out.TaskHistoryLimit = int(limit)
	} else if current == nil {
		out.TaskHistoryLimit = 5
	}
	if in.Dispatcher.HeartbeatPeriod != 0 {
		out.HeartbeatPeriod = in.Dispatcher.HeartbeatPeriod
	}
	out.ForceRotate, out.AutoLock = ca.ForceRotate, in.EncryptionConfig.AutoLockManagers
	if ca.NodeCertExpiry != 0 {
		out.CertExpiry = ca.NodeCertExpiry
	}
	return out, nil
}

func wireCluster(c *cloud.Cluster) apiswarm.ClusterInfo {
	limit, snapshots := int64(c.Spec.TaskHistoryLimit), uint64(0)
	return apiswarm.ClusterInfo{
		ID: c.ID, Meta: wireMeta(&c.Meta),
		Spec: apiswarm.Spec{
			Annotations:      apiswarm.Annotations{Name: c.Spec.Name, Labels: mapping(c.Spec.Labels)},
			Orchestration:    apiswarm.OrchestrationConfig{TaskHistoryRetentionLimit: &limit},
			Raft:             apiswarm.RaftConfig{SnapshotInterval: 10000, KeepOldSnapshots: &snapshots, LogEntriesForSlowFollowers: 500, ElectionTick: 10, HeartbeatTick: 1},
			Dispatcher:       apiswarm.DispatcherConfig{HeartbeatPeriod: c.Spec.HeartbeatPeriod},
			CAConfig:         apiswarm.CAConfig{NodeCertExpiry: c.Spec.CertExpiry, ForceRotate: c.Spec.ForceRotate},
			EncryptionConfig: apiswarm.EncryptionConfig{AutoLockManagers: c.Spec.AutoLock},
		},
		TLSInfo: clusterTLSInfo(&c.CA), RootRotationInProgress: c.CA.Next != nil,
		DefaultAddrPool: append([]netip.Prefix{}, c.Spec.AddressPools...), SubnetSize: uint32(c.Spec.SubnetSize), DataPathPort: uint32(c.Spec.DataPathPort), //nolint:gosec // a prefix length
	}
}

// clusterTLSInfo shows the authority that is trusted, and the one from which all nodes are to have certificates.
func clusterTLSInfo(ca *cloud.CA) apiswarm.TLSInfo {
	out := tlsInfo(string(ca.Cert))
	if ca.Next != nil {
		next := tlsInfo(string(ca.Next.Cert))
		out.CertIssuerSubject, out.CertIssuerPublicKey = next.CertIssuerSubject, next.CertIssuerPublicKey
	}
	return out
}

// swarmInfo is the cluster's part of docker info.
func swarmInfo(l LocalSwarm) apiswarm.Info {
	out := apiswarm.Info{
		NodeID: l.NodeID, NodeAddr: l.NodeAddr, LocalNodeState: apiswarm.LocalNodeState(l.State), ControlAvailable: l.ControlAvailable,
		Error: l.Error, Nodes: l.NodesTotal, Managers: l.ManagersTotal,
	}
	if out.LocalNodeState == "" {
		out.LocalNodeState = apiswarm.LocalNodeStateInactive
	}
	for _, m := range l.Managers {
		out.RemoteManagers = append(out.RemoteManagers, apiswarm.Peer{NodeID: m.NodeID, Addr: m.Addr})
	}
	if l.Cluster != nil {
		c := wireCluster(l.Cluster)
		out.Cluster = &c
	} else if l.ClusterID != "" {
		out.Cluster = &apiswarm.ClusterInfo{ID: l.ClusterID}
	}
	return out
}

func wireMeta(m *cloud.Meta) apiswarm.Meta {
	return apiswarm.Meta{Version: apiswarm.Version{Index: m.Version}, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
}

func availabilityOf(in apiswarm.NodeAvailability) (cloud.Availability, error) {
	switch in {
	case "":
		return cloud.AvailabilityActive, nil
	case apiswarm.NodeAvailabilityActive, apiswarm.NodeAvailabilityPause, apiswarm.NodeAvailabilityDrain:
		return cloud.Availability(in), nil
	}
	return "", fault.New(fault.InvalidArgument, "invalid Availability: %q: it must be active, pause or drain", string(in))
}
