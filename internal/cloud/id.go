package cloud

import (
	"crypto/rand"
	"math/big"
)

const idLength = 25

// NewID returns a random identifier: 25 characters of base 36 (0-9a-z), 128 bits of it random, in the shape Docker's
// clients know from swarm objects.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	s := new(big.Int).SetBytes(b[:]).Text(36)
	for len(s) < idLength {
		s = "0" + s
	}
	return s[:idLength]
}
