package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// record is what the node must know of its membership before it can ask anybody: DATA-ROOT/swarm/state.json. That the
// file is there is what being in a cluster means; it is written last and removed first.
type record struct {
	ClusterID    string         `json:"clusterID"`
	NodeID       string         `json:"nodeID"`
	Listen       netip.AddrPort `json:"listen"`    // of the RPC server, while this node is a manager
	Advertise    netip.AddrPort `json:"advertise"` // where others reach it
	DataPath     netip.Addr     `json:"dataPath"`
	DataPathPort uint16         `json:"dataPathPort"`
}

func (r *record) peerURL() string { return "https://" + r.Advertise.String() }

// Files in DATA-ROOT/swarm.
const (
	recordFile   = "state.json"
	managersFile = "managers.json"
	certsDir     = "certificates"
	etcdDir      = "etcd"
)

// readRecord returns nil if the node is in no cluster.
func readRecord(dir string) (*record, error) {
	doc, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read this node's membership: %w", err)
	}
	r := new(record)
	if err := json.Unmarshal(doc, r); err != nil {
		return nil, fmt.Errorf("this node's membership in %s cannot be read: %w", filepath.Join(dir, recordFile), err)
	}
	if r.NodeID == "" || r.ClusterID == "" || !r.Advertise.IsValid() {
		return nil, fmt.Errorf("this node's membership in %s is incomplete", filepath.Join(dir, recordFile))
	}
	return r, nil
}

func (r *record) write(dir string) error {
	doc, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-"+recordFile+"-")
	if err != nil {
		return fmt.Errorf("keep this node's membership: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(doc)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, recordFile))
	}
	if err != nil {
		return fmt.Errorf("keep this node's membership: %w", err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// wipe removes everything of the membership, the record first: what is left by a crash means nothing without it.
func wipe(dir string) error {
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget this node's membership: %w", err)
	}
	return os.RemoveAll(dir)
}
