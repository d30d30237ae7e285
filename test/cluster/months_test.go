package cluster

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/identity"
	"github.com/sampan-cloud/sampan/internal/state"
	"github.com/sampan-cloud/sampan/internal/state/etcdstate"
	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestBackAfterMonths: hosts come back by themselves after a time longer than their certificates are valid: a worker and
// a manager of a cluster that went on, and then the whole cluster.
func TestBackAfterMonths(t *testing.T) {
	t.Parallel()
	l := Cluster(t, 4, 3)
	h, manager, worker := l.Hosts[0], l.Hosts[2], l.Hosts[3]
	Docker(t, h, "network", "create", "-d", "overlay", "n")
	service(t, h, "web", 4, "--network", "n", "--publish", "8080:8080")

	stop := func(hosts ...*testhost.Host) {
		for _, host := range hosts {
			if err := host.Lose(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	boot := func(hosts ...*testhost.Host) {
		for _, host := range hosts {
			if err := host.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := host.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop(manager, worker)
	ca := authority(t, manager)
	old := [][]byte{expire(t, ca, manager), expire(t, ca, worker)}
	status(t, h, manager, "Down")
	running(t, h, "web", 4, manager, worker)
	boot(manager, worker)
	status(t, h, worker, "Ready")
	managers(t, h, l.Hosts[:3]...)
	for i, host := range []*testhost.Host{manager, worker} {
		if now := read(t, certificate(host)); bytes.Equal(now, old[i]) {
			t.Errorf("%s has its expired certificate still", host.Name)
		}
	}

	stop(l.Hosts...)
	for _, host := range l.Hosts {
		expire(t, ca, host)
	}
	boot(l.Hosts...)
	managers(t, h, l.Hosts[:3]...)
	for _, host := range l.Hosts {
		status(t, h, host, "Ready")
	}
	Docker(t, h, "service", "scale", "-d", "web=6")
	running(t, h, "web", 6)
	answers(t, l.Client, "http://"+worker.Addr.String()+":8080", 6)
}

func certificate(h *testhost.Host) string {
	return filepath.Join(h.DataRoot(), "swarm", "certificates", "swarm-node.pem")
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// member is what a host's membership file says, as far as it matters here.
type member struct{ ClusterID, NodeID string }

func memberOf(t *testing.T, h *testhost.Host) (m member) {
	t.Helper()
	if err := json.Unmarshal(read(t, filepath.Join(h.DataRoot(), "swarm", "state.json")), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// authority reads the cluster's CA with its key out of a copy of a stopped manager's state.
func authority(t *testing.T, h *testhost.Host) *identity.CA {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(h.DataRoot(), "swarm", "etcd"))); err != nil {
		t.Fatal(err)
	}
	m := memberOf(t, h)
	id, err := identity.Load(filepath.Dir(certificate(h)), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	store, err := etcdstate.Open(etcdstate.Config{Dir: dir, DataKey: id.DataKey(), Name: m.NodeID, PeerURL: "http://127.0.0.1:1", Cluster: m.ClusterID, ForceNewCluster: true})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var cluster *cloud.Cluster
	store.View(func(tx state.Tx) { cluster = state.Get[*cloud.Cluster](tx, m.ClusterID) })
	ca, err := identity.ParseCA(cluster.CA.Cert, cluster.CA.Key)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// expire gives a stopped host a certificate that ended half an hour ago, and returns it as it is on disk.
func expire(t *testing.T, ca *identity.CA, h *testhost.Host) []byte {
	t.Helper()
	dir := filepath.Dir(certificate(h))
	id, err := identity.Load(dir, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, id.Subject(), identity.MinNodeLifetime, time.Now().Add(-90*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Install(cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	if !id.Expired() {
		t.Fatal("the certificate is valid")
	}
	return read(t, certificate(h))
}
