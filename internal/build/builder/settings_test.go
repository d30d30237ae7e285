package builder

import (
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/build"
)

func TestSettingsInBuildKitsWords(t *testing.T) {
	root := t.TempDir()
	if p := keepPolicy(root, build.Settings{NoGC: true}); p != nil {
		t.Errorf("without collection: %v", p)
	}
	p := keepPolicy(root, build.Settings{GC: []build.PruneRequest{{All: true, KeepDuration: time.Hour, ReservedSpace: 5, Filter: []string{"type==regular"}}}})
	if len(p) != 1 || !p[0].All || p[0].KeepDuration != time.Hour || p[0].ReservedSpace != 5 || len(p[0].Filter) != 1 {
		t.Errorf("rules: %+v", p)
	}
	p = keepPolicy(root, build.Settings{ReservedSpace: 1 << 40, MaxUsedSpace: 2 << 40})
	if len(p) == 0 || p[len(p)-1].ReservedSpace != 1<<40 || p[len(p)-1].MaxUsedSpace != 2<<40 {
		t.Errorf("sizes: %+v", p)
	}
	if a := allowed(build.Settings{}); len(a) != 1 || a[0] != "network.host" {
		t.Errorf("allowed: %v", a)
	}
	if a := allowed(build.Settings{NoHostNetwork: true}); a != nil {
		t.Errorf("allowed: %v", a)
	}
	if c := historyConfig(build.Settings{}); c != nil {
		t.Errorf("history: %v", c)
	}
	if c := historyConfig(build.Settings{HistoryAge: time.Hour, HistoryEntries: 3}); c.MaxAge.Duration != time.Hour || *c.MaxEntries != 3 {
		t.Errorf("history: %v", c)
	}
}
