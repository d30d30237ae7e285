package identity

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"math/big"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// The parts of SWMTKN-1-DIGEST-SECRET, both in base 36 and padded with zeros.
const (
	tokenPrefix  = "SWMTKN"
	digestLength = 50 // 256 bits
	secretLength = 25 // 128 bits
)

// Token is what a join token says: which CA to believe, and a secret that is the role's.
type Token struct {
	Digest string // of the CA's certificate, as CA.Digest
	Secret string
}

// NewToken makes a join token for the CA with that digest.
func NewToken(digest string) (string, error) {
	sum, err := hex.DecodeString(digest)
	if err != nil || len(sum) != 32 {
		return "", fault.New(fault.Internal, "the CA's digest %q is not a SHA-256", digest)
	}
	var secret [16]byte
	rand.Read(secret[:])
	return tokenPrefix + "-1-" + base36(sum, digestLength) + "-" + base36(secret[:], secretLength), nil
}

func base36(b []byte, length int) string {
	s := new(big.Int).SetBytes(b).Text(36)
	return strings.Repeat("0", length-len(s)) + s
}

// ParseToken reads a join token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	parts := strings.Split(s, "-")
	if len(parts) != 4 || parts[0] != tokenPrefix {
		return Token{}, badToken("it does not have the form SWMTKN-1-DIGEST-SECRET")
	}
	if parts[1] != "1" {
		return Token{}, badToken("version " + parts[1] + " is unknown")
	}
	if len(parts[2]) != digestLength || len(parts[3]) != secretLength {
		return Token{}, badToken("a part is missing: was it copied whole?")
	}
	for _, part := range parts[2:] {
		if strings.Trim(part, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
			return Token{}, badToken("only digits and small letters may stand in it")
		}
	}
	digest, _ := new(big.Int).SetString(parts[2], 36)
	if digest.BitLen() > 256 {
		return Token{}, badToken("its digest is too large")
	}
	return Token{Digest: hex.EncodeToString(digest.FillBytes(make([]byte, 32))), Secret: parts[3]}, nil
}

func badToken(why string) error {
	return fault.New(fault.InvalidArgument, "invalid join token: %s (\"docker swarm join-token worker\" on a manager shows one)", why)
}

// SameToken compares two tokens in a time that tells nothing of where they differ. An empty token is nobody's.
func SameToken(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
