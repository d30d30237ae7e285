package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// store keeps one JSON file for each object of a kind. A file is replaced whole, so that a reader, also one after a
// crash, finds the old object or the new one.
type store struct{ dir string }

func newStore(dir string) (store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return store{}, fmt.Errorf("network store: %w", err)
	}
	return store{dir: dir}, nil
}

func (s store) path(id string) string { return filepath.Join(s.dir, id+".json") }

// put writes an object. It is synced only if durable: what is gone after a reboot anyway need not be.
func (s store) put(id string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("network store: %s: %w", id, err)
	}
	f, err := os.CreateTemp(s.dir, ".new-")
	if err != nil {
		return fmt.Errorf("network store: %w", err)
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.path(id))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("network store: %s: %w", id, err)
	}
	return nil
}

func (s store) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network store: %w", err)
	}
	return nil
}

// load reads every object, and names those that cannot be read in bad.
func load[T any](s store) (all map[string]*T, bad map[string]error, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("network store: %w", err)
	}
	all, bad = map[string]*T{}, map[string]error{}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			if strings.HasPrefix(e.Name(), ".new-") {
				_ = os.Remove(filepath.Join(s.dir, e.Name()))
			}
			continue
		}
		b, err := os.ReadFile(s.path(id))
		v := new(T)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			bad[id] = err
			continue
		}
		all[id] = v
	}
	return all, bad, nil
}
