package docker

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// filters narrow a list: all keys must match, each by any of its values.
type filters map[string][]string

// parseFilters reads the filters parameter in its two forms: {"key":{"value":true}} and the older {"key":["value"]}.
// A key that is not among accepted is refused.
func (r *request) parseFilters(accepted ...string) (filters, error) {
	f, err := decodeFilters(r.query.Get("filters"))
	if err != nil {
		return nil, err
	}
	return f, f.accept(accepted...)
}

func decodeFilters(s string) (filters, error) {
	f := filters{}
	if s == "" {
		return f, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s), &raw); err != nil {
		return nil, fault.New(fault.InvalidArgument, "invalid filter: %q is not a JSON object of lists or sets", s)
	}
	for key, value := range raw {
		var set map[string]bool
		var values []string
		switch {
		case json.Unmarshal(value, &set) == nil:
			for v, on := range set {
				if on {
					values = append(values, v)
				}
			}
		case json.Unmarshal(value, &values) == nil:
		default:
			return nil, fault.New(fault.InvalidArgument, "invalid filter: the values of '%s' must be a list of strings or a set", key)
		}
		slices.Sort(values)
		f[key] = values
	}
	return f, nil
}

// accept refuses keys that are not among accepted.
func (f filters) accept(accepted ...string) error {
	for key := range f {
		if !slices.Contains(accepted, key) {
			return fault.New(fault.InvalidArgument, "invalid filter '%s'", key)
		}
	}
	return nil
}

func (f filters) has(key string) bool { return len(f[key]) > 0 }

// is reports whether one of the key's values is any of s, or the key is not given.
func (f filters) is(key string, s ...string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(v string) bool { return slices.Contains(s, v) })
}

// prefix reports whether one of the key's values begins any of s, or the key is not given.
func (f filters) prefix(key string, s ...string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(v string) bool {
		return slices.ContainsFunc(s, func(s string) bool { return strings.HasPrefix(s, v) })
	})
}

// match reports whether one of the key's values, read as a regular expression or else as text, is in any of s, or the
// key is not given.
func (f filters) match(key string, s ...string) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], func(v string) bool {
		re, err := regexp.Compile(v)
		return slices.ContainsFunc(s, func(s string) bool {
			return s == v || err == nil && re.MatchString(s) || err != nil && strings.Contains(s, v)
		})
	})
}

// labels reports whether all of the key's values, KEY or KEY=VALUE, are among labels.
func (f filters) labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		k, v, valued := strings.Cut(want, "=")
		have, ok := labels[k]
		if !ok || valued && have != v {
			return false
		}
	}
	return true
}

// notLabels reports whether none of the values of label! is among labels.
func (f filters) notLabels(labels map[string]string) bool {
	return !slices.ContainsFunc(f["label!"], func(want string) bool {
		return filters{"label": {want}}.labels("label", labels)
	})
}

// flag reads a boolean filter that may be given once or not at all.
func (f filters) flag(key string, otherwise bool) (bool, error) {
	if !f.has(key) {
		return otherwise, nil
	}
	var result, set bool
	for _, v := range f[key] {
		var b bool
		switch strings.ToLower(v) {
		case "1", "true":
			b = true
		case "0", "false":
		default:
			return false, fault.New(fault.InvalidArgument, "invalid filter '%s=%s': it must be true or false", key, v)
		}
		if set && b != result {
			return false, fault.New(fault.InvalidArgument, "invalid filter '%s': it is both true and false", key)
		}
		result, set = b, true
	}
	return result, nil
}

// until reads the until filter: a timestamp, or a duration that has passed since; the zero time when not given.
func (f filters) until(now time.Time) (time.Time, error) {
	switch len(f["until"]) {
	case 0:
		return time.Time{}, nil
	case 1:
		return parseUntil(f["until"][0], now)
	}
	return time.Time{}, fault.New(fault.InvalidArgument, "more than one until filter specified")
}

// earliestUntil reads the until filter where it may be given several times: all must hold.
func (f filters) earliestUntil(now time.Time) (earliest time.Time, err error) {
	for _, v := range f["until"] {
		t, err := parseUntil(v, now)
		if err != nil {
			return t, err
		}
		if earliest.IsZero() || t.Before(earliest) {
			earliest = t
		}
	}
	return earliest, nil
}

func parseUntil(v string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	t, err := parseTimestamp(v)
	if err != nil {
		return time.Time{}, fault.New(fault.InvalidArgument, "invalid filter 'until=%s': it must be a time or a duration", v)
	}
	return t, nil
}

// ago says how long ago t was, in words, or nothing for the zero time.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(now.Sub(t))
}
