package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// KeySize is that of unlock keys and data keys, in bytes: AES-256.
const KeySize = 32

const unlockPrefix = "SWMKEY-1-" // as Docker's

// Blocks of a node's file beside the certificate. In the sealed ones is what stands in the others, under the unlock key.
const (
	keyBlock        = "PRIVATE KEY"
	dataBlock       = "SAMPAN DATA KEY"
	sealedKeyBlock  = "SAMPAN LOCKED PRIVATE KEY"
	sealedDataBlock = "SAMPAN LOCKED DATA KEY"
)

// ErrLocked says that a node's keys are locked, and that no key, or not the right one, was given to unlock them.
var ErrLocked = errors.New("this node's keys are locked")

// NewUnlockKey makes a key that managers lock their own with, as users keep it.
func NewUnlockKey() string { return unlockPrefix + base64.RawStdEncoding.EncodeToString(NewDataKey()) }

// NewDataKey makes the key that a cluster's stored state is encrypted with.
func NewDataKey() []byte {
	key := make([]byte, KeySize)
	rand.Read(key)
	return key
}

func parseUnlockKey(s string) ([]byte, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), unlockPrefix)
	key, err := base64.RawStdEncoding.DecodeString(rest)
	if !ok || err != nil || len(key) != KeySize {
		return nil, fault.New(fault.InvalidArgument, "invalid unlock key: it must have the form %s…", unlockPrefix)
	}
	return key, nil
}

// Seal encrypts a document for one place: Open needs the same key and place.
func Seal(key, plain []byte, place string) ([]byte, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, []byte(place)), nil
}

// Open decrypts what Seal has made.
func Open(key, sealed []byte, place string) ([]byte, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, sealed, []byte(place))
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// keys are what a node keeps secret.
type keys struct {
	private []byte // PEM, of the certificate
	data    []byte // of the cluster's state, on managers
	unlock  string // under which the others are kept; empty: as they are
}

// file is the node's file: the certificate and the keys, which are locked if there is a key to unlock them.
func (k *keys) file(certPEM []byte) ([]byte, error) {
	out := append(slices.Clone(certPEM), '\n')
	if k.unlock == "" {
		out = append(out, k.private...)
		if k.data != nil {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: dataBlock, Bytes: k.data})...)
		}
		return out, nil
	}
	lock, err := parseUnlockKey(k.unlock)
	if err != nil {
		return nil, err
	}
	for _, b := range []pem.Block{{Type: sealedKeyBlock, Bytes: k.private}, {Type: sealedDataBlock, Bytes: k.data}} {
		if b.Bytes == nil {
			continue
		}
		if b.Bytes, err = Seal(lock, b.Bytes, b.Type); err != nil {
			return nil, fmt.Errorf("lock this node's keys: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&b)...)
	}
	return out, nil
}

// parseFile reads what file has made. unlock may be empty if the keys are not locked.
func parseFile(doc []byte, unlock string) (certPEM []byte, k keys, err error) {
	for rest := doc; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch b.Type {
		case "CERTIFICATE":
			certPEM = append(certPEM, pem.EncodeToMemory(b)...)
		case keyBlock:
			k.private = pem.EncodeToMemory(b)
		case dataBlock:
			k.data = b.Bytes
		case sealedKeyBlock, sealedDataBlock:
			if unlock == "" {
				return nil, keys{}, ErrLocked
			}
			lock, err := parseUnlockKey(unlock)
			if err != nil {
				return nil, keys{}, err
			}
			plain, err := Open(lock, b.Bytes, b.Type)
			if err != nil {
				return nil, keys{}, ErrLocked
			}
			k.unlock = unlock
			if b.Type == sealedKeyBlock {
				k.private = plain
			} else {
				k.data = plain
			}
		}
	}
	return certPEM, k, nil
}

// memoryFile is a file that is on no disk, for code that reads keys from a path.
type memoryFile struct{ f *os.File }

func newMemoryFile() (*memoryFile, error) {
	fd, err := unix.MemfdCreate("node-key", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory for this node's key: %w", err)
	}
	return &memoryFile{os.NewFile(uintptr(fd), "node-key")}, nil
}

func (m *memoryFile) path() string { return fmt.Sprintf("/proc/self/fd/%d", m.f.Fd()) }

// replace puts another file in the place of this one at once: a reader meets the one or the other.
func (m *memoryFile) replace(doc []byte) error {
	next, err := newMemoryFile()
	if err != nil {
		return err
	}
	defer next.f.Close()
	if _, err := next.f.Write(doc); err != nil {
		return fmt.Errorf("keep this node's key in memory: %w", err)
	}
	return unix.Dup3(int(next.f.Fd()), int(m.f.Fd()), unix.O_CLOEXEC)
}
