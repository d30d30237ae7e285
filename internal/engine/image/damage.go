package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// checkDatabase reads a whole database before anything works with it: one that was torn makes the library panic, or the
// kernel end a process that reads behind the end of the file. A file that is not there or empty is none yet.
func checkDatabase(path string) error {
	if fi, err := os.Stat(path); err != nil || fi.Size() == 0 {
		return nil
	}
	err := readDatabase(path)
	if err == nil || errors.Is(err, berrors.ErrTimeout) || errors.Is(err, os.ErrPermission) {
		return nil // another process has it, or it cannot be read: its opening says that better
	}
	root := filepath.Dir(path)
	if filepath.Base(root) == "overlayfs" {
		root = filepath.Dir(root)
	}
	return fault.New(fault.FailedPrecondition, "image store: the database %s is damaged, as after a loss of power or with a disk that fails: %w: "+
		"put a backup of it back, or move %s and the folder %s away together, start sampand again and pull or load the images anew; "+
		"containers, volumes and networks are not touched by that", path, err, filepath.Join(root, "metadata.db"), filepath.Join(root, "overlayfs"))
}

func readDatabase(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: lockWait})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bolt.Tx) error {
		if fi, err := os.Stat(path); err != nil || fi.Size() < tx.Size() {
			return errors.Join(err, errors.New("it is cut short"))
		}
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return readBucket(b) })
	})
	return errors.Join(err, db.Close())
}

// readBucket reads every key and value: each page that is in use.
func readBucket(b *bolt.Bucket) error {
	var sum byte
	var last []byte
	err := b.ForEach(func(k, v []byte) error {
		if last != nil && string(last) >= string(k) {
			return fmt.Errorf("its keys are out of order")
		}
		last = k
		for _, c := range v {
			sum ^= c
		}
		if v != nil {
			return nil
		}
		inner := b.Bucket(k)
		if inner == nil {
			return fmt.Errorf("a bucket in it is none")
		}
		return readBucket(inner)
	})
	_ = sum
	return err
}
