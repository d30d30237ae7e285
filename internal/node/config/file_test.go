package config

import (
	"slices"
	"testing"
)

// TestChangedKeys: spaces and the order of keys are no change.
func TestChangedKeys(t *testing.T) {
	before, err := readText(t, `{"mtu": 1400, "log-opts": {"max-size": "1m"}, "labels": ["a=1"]}`)
	if err != nil {
		t.Fatal(err)
	}
	after, err := readText(t, `{"labels": [ "a=2" ],
		"log-opts": { "max-size":"1m" }, "data-root": "/x"}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := after.NeedRestart(&before); !slices.Equal(got, []string{"data-root", "mtu"}) {
		t.Errorf("a restart applies %v", got)
	}
	if got := after.changedKeys(&before); !slices.Equal(got, []string{"data-root", "labels", "mtu"}) {
		t.Errorf("changed: %v", got)
	}
}
