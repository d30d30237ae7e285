package etcdstate

import (
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// How long a member that joins waits until what it knows of the others and what they know agree, and how often it asks.
const (
	joinPatience  = 10 * time.Second
	betweenAsking = 50 * time.Millisecond
)

// start starts etcd. A fresh member first compares the list of members that it was given with that of another member,
// any of them, and its version with the cluster's: a member that lags behind does not have the newcomer yet, others may
// join or leave at the same time, and a cluster that was founded a moment ago has not agreed on its version. So they are
// asked again, and the list follows what they say.
func start(cfg Config, fresh bool) (*embed.Etcd, error) {
	for deadline := time.Now().Add(joinPatience); ; time.Sleep(betweenAsking) {
		ec, err := embedConfig(cfg)
		if err != nil {
			return nil, err
		}
		e, err := embed.StartEtcd(ec)
		if err == nil || !fresh || !passes(err) || time.Now().After(deadline) {
			return e, err
		}
		if cfg.InitialCluster != "" {
			cfg.InitialCluster = membersNow(cfg, ec)
		}
	}
}

// passes tells the refusals of a fresh member that end by themselves. etcd has no values for these errors.
func passes(err error) bool {
	return strings.Contains(err.Error(), "error validating peerURLs") || strings.Contains(err.Error(), "incompatible with current running cluster")
}

// membersNow asks the other members for the list of members. It returns what the configuration has if none answers, or
// if the one that does has not heard of this member.
func membersNow(cfg Config, ec *embed.Config) string {
	var others []string
	for _, part := range strings.Split(cfg.InitialCluster, ",") {
		if _, url, _ := strings.Cut(part, "="); url != "" && url != cfg.PeerURL {
			others = append(others, url)
		}
	}
	slices.Sort(others) // as etcd asks them: the first that answers is believed
	rt, err := transport.NewTransport(ec.PeerTLSInfo, time.Second)
	if err != nil {
		return cfg.InitialCluster
	}
	defer rt.CloseIdleConnections()
	found, err := etcdserver.GetClusterFromRemotePeers(nil, others, rt)
	if err != nil {
		return cfg.InitialCluster
	}
	var members []Member
	for _, m := range found.Members() {
		members = append(members, memberOf(m))
	}
	if !slices.ContainsFunc(members, func(m Member) bool { return m.PeerURL == cfg.PeerURL }) {
		return cfg.InitialCluster
	}
	return memberList(cfg.Name, cfg.PeerURL, members)
}
