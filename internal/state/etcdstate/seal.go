package etcdstate

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	"github.com/sampan-cloud/sampan/internal/state/mirror"
)

// sealed begins a value that is encrypted. What is not begins with no such byte: documents are JSON, records are IDs.
var sealed = []byte{0, 1}

// seal encrypts what is stored: everything that etcd has on disk, or hands to the other members to have there, goes
// through it. Keys are left as they are, since etcd orders and compares them; they hold kinds, IDs and names. A value is
// bound to its key: moved to another it is not believed.
type seal struct{ aead cipher.AEAD }

// newSeal returns nil without a key: then nothing is encrypted.
func newSeal(key []byte) (*seal, error) {
	if len(key) == 0 {
		return nil, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("the key of the cluster's state: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &seal{aead}, nil
}

// close returns the transaction with its values encrypted.
func (s *seal) close(txn mirror.Txn) mirror.Txn {
	if s == nil {
		return txn
	}
	puts := make(map[string][]byte, len(txn.Puts))
	for key, value := range txn.Puts {
		puts[key] = s.aead.Seal(bytes.Clone(sealed), nil, value, []byte(key))
	}
	txn.Puts = puts
	return txn
}

// open returns a value as it was written.
func (s *seal) open(key string, value []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(value, sealed)
	if !ok {
		return value, nil
	}
	if s == nil {
		return nil, fmt.Errorf("%s is encrypted, and this manager does not have the key", key)
	}
	plain, err := s.aead.Open(nil, nil, rest, []byte(key))
	if err != nil {
		return nil, fmt.Errorf("%s was encrypted with another key, or damaged", key)
	}
	return plain, nil
}
