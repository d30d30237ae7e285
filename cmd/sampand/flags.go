package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sampan-cloud/sampan/internal/node/config"
)

// keyFlag is a flag for a key of the configuration file: what it was given, as the file would have it.
type keyFlag struct {
	config.Flag
	list []string
	raw  json.RawMessage // nil: it was not given
}

// String is for the help text alone.
func (f *keyFlag) String() string { return "" }

// Type is for the help text alone.
func (f *keyFlag) Type() string { return f.Kind }

// Set takes a value.
func (f *keyFlag) Set(text string) error {
	var v any = text
	var err error
	switch f.Kind {
	case "bool":
		v, err = strconv.ParseBool(text)
	case "int":
		v, err = strconv.ParseInt(text, 10, 64)
	case "list":
		f.list = append(f.list, text)
		v = f.list
	}
	if err != nil {
		return err
	}
	f.raw, err = json.Marshal(v)
	return err
}

// keyFlags adds the flags of keys without a field of their own.
func keyFlags(f *pflag.FlagSet) []*keyFlag {
	var all []*keyFlag
	for _, k := range config.Flags() {
		kf := &keyFlag{Flag: k}
		var letter string
		kf.Name, letter, _ = strings.Cut(k.Name, ",")
		f.VarP(kf, kf.Name, letter, k.Usage)
		if k.Kind == "bool" {
			f.Lookup(kf.Name).NoOptDefVal = "true"
		}
		all = append(all, kf)
	}
	return all
}

// lay lays what the flags were given over the configuration.
func lay(c *config.Config, flags []*keyFlag) error {
	for _, f := range flags {
		if f.raw != nil {
			if err := c.Set(f.Key, f.raw); err != nil {
				return fmt.Errorf("--%s: %w", f.Name, err)
			}
		}
	}
	return nil
}
