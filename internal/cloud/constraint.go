package cloud

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Constraint is one parsed placement constraint: a key of a node, whether it must be or must not be, and a value.
type Constraint struct {
	Key   string // node.id, node.hostname, node.role, node.platform.os, node.ip, node.labels.NAME, engine.labels.NAME, …
	Equal bool   // ==, otherwise !=
	Value string
}

// String returns the constraint as a user would write it.
func (c Constraint) String() string {
	if c.Equal {
		return c.Key + "==" + c.Value
	}
	return c.Key + "!=" + c.Value
}

const (
	nodeLabelPrefix   = "node.labels."
	engineLabelPrefix = "engine.labels."
)

var (
	constraintKey   = regexp.MustCompile(`^[A-Za-z_][\w.-]+$`)
	constraintValue = regexp.MustCompile(`^[\w\s:./*?+()|^$\[\]\\-]+$`)
)

// ParseConstraints parses expressions KEY==VALUE and KEY!=VALUE; spaces around the three parts are ignored. Keys it does
// not know are accepted, as Docker does: no node satisfies them.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	out := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		c, err := parseConstraint(e)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func parseConstraint(e string) (Constraint, error) {
	// The operator that comes first wins, so that a value may hold the other one's characters and still be refused for
	// what it is: a value with characters that no value has.
	eq, ne := strings.Index(e, "=="), strings.Index(e, "!=")
	at, equal := eq, true
	if eq < 0 || ne >= 0 && ne < eq {
		at, equal = ne, false
	}
	if at < 0 {
		return Constraint{}, fault.New(fault.InvalidArgument, "constraint expected one operator from ==, !=: got '%s'", e)
	}
	c := Constraint{Key: strings.TrimSpace(e[:at]), Equal: equal, Value: strings.TrimSpace(e[at+2:])}
	if !constraintKey.MatchString(c.Key) {
		return Constraint{}, fault.New(fault.InvalidArgument, "key '%s' is invalid", c.Key)
	}
	if !constraintValue.MatchString(c.Value) {
		return Constraint{}, fault.New(fault.InvalidArgument, "value '%s' is invalid", c.Value)
	}
	return c, nil
}

// SatisfiedBy reports whether the node satisfies the constraint.
func (c Constraint) SatisfiedBy(n *Node) bool {
	switch strings.ToLower(c.Key) {
	case "node.platform.arch":
		return (NormalArch(c.Value) == NormalArch(n.Description.Architecture)) == c.Equal
	case "node.ip":
		return c.isAddr(n.Status.Addrs)
	}
	have, ok := n.Value(c.Key)
	return ok && c.is(have)
}

// Value returns what the node has for a key of constraints and placement preferences: node.hostname, node.labels.NAME and
// so on, "" for a label that it lacks. ok is false for what is no key, and for node.ip, of which there may be several.
func (n *Node) Value(key string) (value string, ok bool) {
	switch k := strings.ToLower(key); {
	case k == "node.id":
		return n.ID, true
	case k == "node.hostname":
		return n.Description.Hostname, true
	case k == "node.role":
		return string(n.Spec.Role), true
	case k == "node.platform.os":
		return n.Description.OS, true
	case k == "node.platform.arch":
		return NormalArch(n.Description.Architecture), true
	case len(k) > len(nodeLabelPrefix) && strings.HasPrefix(k, nodeLabelPrefix):
		return n.Spec.Labels[key[len(nodeLabelPrefix):]], true
	case len(k) > len(engineLabelPrefix) && strings.HasPrefix(k, engineLabelPrefix):
		return n.Description.Labels[key[len(engineLabelPrefix):]], true
	}
	return "", false
}

func (c Constraint) is(have string) bool { return strings.EqualFold(c.Value, have) == c.Equal }

func (c Constraint) isAddr(have []netip.Addr) bool {
	want, err := netip.ParsePrefix(c.Value)
	if err != nil {
		a, err := netip.ParseAddr(c.Value)
		if err != nil {
			return false
		}
		want = netip.PrefixFrom(a, a.BitLen())
	}
	for _, a := range have {
		if want.Contains(a.Unmap()) {
			return c.Equal
		}
	}
	return !c.Equal
}

// Satisfies reports whether the node satisfies every constraint.
func (n *Node) Satisfies(constraints []Constraint) bool {
	for _, c := range constraints {
		if !c.SatisfiedBy(n) {
			return false
		}
	}
	return true
}

// NormalArch returns the Go name of a machine architecture: uname and Docker's tools name the same one differently.
func NormalArch(a string) string {
	switch a = strings.ToLower(a); a {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armv7l", "armhf", "armel", "armv6l":
		return "arm"
	case "i386", "i686":
		return "386"
	}
	return a
}

// Fits reports whether a node of platform have can run what is made for p.
func (p Platform) Fits(os, arch string) bool {
	return (p.OS == "" || strings.EqualFold(p.OS, os)) &&
		(p.Architecture == "" || NormalArch(p.Architecture) == NormalArch(arch))
}
