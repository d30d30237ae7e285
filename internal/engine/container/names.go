package container

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// randomID returns 64 random hex digits. One that reads as a number is not used: its short form would be a host name that
// programs take for an address.
func randomID() string {
	for {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		if _, err := strconv.ParseUint(id[:12], 10, 64); err != nil {
			return id
		}
	}
}

func isID(s string) bool {
	if len(s) != 64 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil && strings.ToLower(s) == s
}

// reserve takes a name for a container that is about to exist, a random one if name is empty.
func (m *Manager) reserve(name, id string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "" {
		for try := 0; ; try++ {
			name = RandomName()
			if try > 5 {
				name += strconv.Itoa(try)
			}
			if _, taken := m.byName[name]; !taken {
				m.byName[name] = id
				return name, nil
			}
		}
	}
	name = strings.TrimPrefix(name, "/")
	if !nameRule.MatchString(name) {
		return "", fault.New(fault.InvalidArgument, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if other, taken := m.byName[name]; taken {
		return "", fault.New(fault.AlreadyExists, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other)
	}
	m.byName[name] = id
	return name, nil
}

// release gives up a name if id has it.
func (m *Manager) release(name, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byName[name] == id {
		delete(m.byName, name)
	}
}

// RandomName returns a name for what nobody has given one.
func RandomName() string { return pick(adjectives) + "_" + pick(nouns) }

func pick(words string) string {
	all := strings.Fields(words)
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(all))))
	if err != nil {
		return all[0]
	}
	return all[n.Int64()]
}

const adjectives = `able agile amber ample azure bold brave breezy bright brisk busy calm candid cheerful chilly clear
clever coastal cool coral cosy crisp curious dapper daring deft dewy eager early earnest easy fair famous fearless fleet
fond frank fresh friendly gallant gentle gilded glad golden graceful grand happy hardy hazel hearty honest humble jolly
jovial keen kind lively loyal lucid lucky lunar mellow merry mighty misty modest neat nimble noble patient placid plucky
polite prime proud quick quiet rapid ready regal rosy royal salty serene sharp silent silver sincere smooth snug solar
sound spry stable steady stoic sturdy sunny swift tidal tidy tranquil trusty upbeat vivid warm wise witty zesty`

const nouns = `anchor atoll barge barnacle bay beacon berth binnacle bollard boom bosun bow bowline breeze bridge brig
buoy cabin canal cape capstan cargo catamaran channel chart clipper coast compass coral course cove crane crew current
cutter davit deck delta dhow dinghy dock dolphin dory ebb estuary fathom ferry fjord flag fleet frigate galleon galley
gangway gull halyard harbour hatch haven hawser heron hull isle islet jetty jib junk kayak keel ketch kelp knot lagoon
lantern launch ledger lighthouse lock log longboat lugger mainsail manta mariner marina mast mate mooring narwhal oar
oyster packet paddle pearl pelican pennant pier pilot pinnace port prow quay raft reef rigging river rope rudder sail
sampan schooner seal sextant shoal shore skiff sloop sound spar spray stern strait tack tanker tern tide tiller trawler
tug turtle wake walrus wave wharf winch yacht yawl`
