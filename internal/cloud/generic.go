package cloud

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// GenericResource is an amount of a kind that users gave a name, or one thing of it: of a kind, a node has either a number
// or things with names. Amount counts where Value is empty.
type GenericResource struct {
	Kind   string `json:"kind"`
	Value  string `json:"value,omitempty"` // the name of the one thing
	Amount int64  `json:"amount,omitempty"`
}

// Named reports whether the resource is a thing with a name.
func (g GenericResource) Named() bool { return g.Value != "" }

// ParseGenericResources reads terms KIND=NUMBER and KIND=NAME, as --node-generic-resource and the configuration file have
// them: a kind that is given several times is a set of names.
func ParseGenericResources(terms []string) ([]GenericResource, error) {
	bad := func(format string, args ...any) ([]GenericResource, error) {
		return nil, fault.New(fault.InvalidArgument, "could not parse GenericResource: "+format, args...)
	}
	given := map[string][]string{}
	for _, term := range terms {
		kind, value, ok := strings.Cut(term, "=")
		kind, value = strings.TrimSpace(kind), strings.TrimSpace(value)
		if !ok || kind == "" || value == "" || strings.Contains(value, "=") {
			return bad("incorrect term %s, missing '=' or malformed expression", term)
		}
		given[kind] = append(given[kind], value)
	}
	var out []GenericResource
	for _, kind := range slices.Sorted(maps.Keys(given)) {
		values := given[kind]
		if len(values) == 1 {
			if n, err := strconv.ParseInt(values[0], 10, 64); err == nil {
				if n < 0 {
					return bad("cannot ask for negative resource %s", kind)
				}
				out = append(out, GenericResource{Kind: kind, Amount: n})
				continue
			}
		}
		for _, v := range values {
			if _, err := strconv.ParseInt(v, 10, 64); err == nil {
				return bad("mixed discrete and named resources in expression '%s=%s'", kind, values)
			}
			out = append(out, GenericResource{Kind: kind, Value: v})
		}
	}
	return out, nil
}

// TakeGeneric takes what is asked for out of what there is. It returns what was taken and what is left; ok is false, and
// nothing is taken, where there is too little.
func TakeGeneric(have, ask []GenericResource) (taken, left []GenericResource, ok bool) {
	left = slices.Clone(have)
	for _, a := range ask {
		missing := a.Amount
		for i := 0; i < len(left) && missing > 0; i++ {
			if left[i].Kind != a.Kind {
				continue
			}
			if left[i].Named() {
				taken = append(taken, left[i])
				left = slices.Delete(left, i, i+1)
				missing--
				i--
			} else if left[i].Amount >= missing {
				taken = append(taken, GenericResource{Kind: a.Kind, Amount: missing})
				left[i].Amount -= missing
				missing = 0
			}
		}
		if missing > 0 {
			return nil, have, false
		}
	}
	return taken, left, true
}

// WithoutGeneric returns what is left of the resources when others hold some of them.
func WithoutGeneric(have, held []GenericResource) []GenericResource {
	left := slices.Clone(have)
	for _, h := range held {
		for i := range left {
			if left[i].Kind != h.Kind || left[i].Value != h.Value {
				continue
			}
			if h.Named() {
				left = slices.Delete(left, i, i+1)
			} else {
				left[i].Amount = max(left[i].Amount-h.Amount, 0)
			}
			break
		}
	}
	return left
}

// GenericEnv is how a task is told what it was given: DOCKER_RESOURCE_KIND=NUMBER, or =NAME,NAME.
func GenericEnv(given []GenericResource) []string {
	values := map[string][]string{}
	for _, g := range given {
		values[g.Kind] = append(values[g.Kind], cmp.Or(g.Value, strconv.FormatInt(g.Amount, 10)))
	}
	env := make([]string, 0, len(values))
	for _, kind := range slices.Sorted(maps.Keys(values)) {
		env = append(env, strings.ToUpper("DOCKER_RESOURCE_"+kind)+"="+strings.Join(values[kind], ","))
	}
	return env
}
