package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// Proxies are those by which registries are reached, in place of those in the environment.
type Proxies struct{ HTTP, HTTPS, No string }

// Set lays the value of a key of the configuration file over the configuration.
func (c *Config) Set(name string, raw json.RawMessage) error {
	k, ok := keys[name]
	if !ok {
		if instead := gone[name]; instead != "" {
			return fault.New(fault.InvalidArgument, "there is no such key: %s", instead)
		}
		return fault.New(fault.InvalidArgument, "there is no such key")
	}
	before := len(c.Notes)
	err := k.set(c, raw)
	for i := before; i < len(c.Notes); i++ {
		c.Notes[i] = name + " " + c.Notes[i]
	}
	return err
}

// note says that what is being set has no effect, and why.
func (c *Config) note(format string, args ...any) {
	c.Notes = append(slices.Clip(c.Notes), fmt.Sprintf("has no effect: "+format, args...))
}

// ReadFile lays the configuration file at path over what the command line said: flagged reports whether a flag was given.
// A key that is given in both places is refused, as dockerd does. The error names every key that must be changed or
// deleted.
func (c *Config) ReadFile(path string, flagged func(name string) bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text = bytes.TrimSpace(bytes.TrimPrefix(text, []byte("\ufeff")))
	if len(text) == 0 {
		return nil // nothing is configured: /dev/null, say
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(text, &values); err != nil {
		return fault.New(fault.InvalidArgument, "configuration file %s: %w", path, err)
	}
	c.file = values
	names := slices.Sorted(maps.Keys(values))
	var both, wrong []string
	for _, name := range names {
		flag := name
		if f := keys[name].flag; f != "" {
			flag = f
		}
		given := []string{flag}
		if name == "proxies" { // each of them has a flag
			var inside map[string]json.RawMessage
			_ = json.Unmarshal(values[name], &inside)
			given = slices.Sorted(maps.Keys(inside))
		}
		if slices.ContainsFunc(given, flagged) {
			both = append(both, name)
			continue
		}
		if err := c.Set(name, values[name]); err != nil {
			wrong = append(wrong, fmt.Sprintf("%q: %v", name, err))
		}
	}
	if values["host-gateway-ip"] != nil && values["host-gateway-ips"] != nil {
		wrong = append(wrong, "host-gateway-ip and host-gateway-ips must not both be specified in the config file")
	}
	if len(both) > 0 {
		wrong = append(wrong, fmt.Sprintf("given as a flag and in the file: %s: keep one", strings.Join(both, ", ")))
	}
	if len(wrong) > 0 {
		return fault.New(fault.InvalidArgument, "configuration file %s: change or delete:\n  %s", path, strings.Join(wrong, "\n  "))
	}
	return nil
}

// NeedRestart are the keys of the file that have other values than when the daemon was started, and that a reload does not
// apply.
func (c *Config) NeedRestart(started *Config) []string {
	return slices.DeleteFunc(c.changedKeys(started), func(name string) bool { return keys[name].live })
}

// changedKeys are the keys of the file whose values are others than in an earlier reading of it.
func (c *Config) changedKeys(earlier *Config) []string {
	var changed []string
	for name := range keys {
		if compact(c.file[name]) != compact(earlier.file[name]) {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	return changed
}

// compact is a value without what JSON may have between its parts.
func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}
