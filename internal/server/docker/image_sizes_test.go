package docker

import (
	"encoding/json"
	"testing"

	apiimage "github.com/moby/moby/api/types/image"

	"github.com/sampan-cloud/sampan/internal/engine/container"
	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// TestSharedSizes: a layer that several images stand on is counted once in sums and told of in each; the same layer on
// top of others is another.
func TestSharedSizes(t *testing.T) {
	l := newLab(t)
	add := func(id string, size int64, layers []string, sizes ...int64) {
		l.images.all[id+":1"] = image.Image{ID: "sha256:" + id, RepoTags: []string{id + ":1"}, Size: size, Layers: layers, LayerSizes: sizes}
	}
	add("aaaa", 110, []string{"base", "a"}, 100, 10)
	add("bbbb", 120, []string{"base", "b"}, 100, 20)
	add("cccc", 107, []string{"a", "base"}, 7, 100)
	l.containers.add(container.Container{ID: "abc", ImageID: "sha256:aaaa"})

	shared := func(path string) map[string]int64 {
		_, _, body := l.do(t, "GET", path, "", "")
		var list []apiimage.Summary
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			t.Fatal(err)
		}
		out := map[string]int64{}
		for _, s := range list {
			out[s.ID] = s.SharedSize
		}
		return out
	}
	if got := shared("/v1.51/images/json"); got["sha256:aaaa"] != -1 {
		t.Errorf("not asked for: %v", got)
	}
	if got := shared("/v1.51/images/json?shared-size=1"); got["sha256:aaaa"] != 100 || got["sha256:bbbb"] != 100 || got["sha256:cccc"] != 0 {
		t.Errorf("asked for: %v", got)
	}
	_, _, body := l.do(t, "GET", "/v1.52/system/df?type=image&verbose=1", "", "")
	var df struct {
		ImageUsage struct {
			TotalSize, Reclaimable  int64
			TotalCount, ActiveCount int64
		}
	}
	if err := json.Unmarshal([]byte(body), &df); err != nil {
		t.Fatal(err)
	}
	u := df.ImageUsage
	if u.TotalSize != 237 || u.Reclaimable != 127 || u.TotalCount != 3 || u.ActiveCount != 1 {
		t.Errorf("usage is %+v of %s", u, body)
	}
}
