package docker

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/engine/events"
	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// tell announces what was done through the API to something that does not announce it itself; attrs are keys and values.
func tell(bus Events, kind, action, id string, attrs ...string) {
	e := events.Event{Type: kind, Action: action, ID: id, Attrs: map[string]string{}}
	for pair := range slices.Chunk(attrs, 2) {
		e.Attrs[pair[0]] = pair[1]
	}
	bus.Publish(e)
}

// tellReclaimed announces that the unused of a kind were removed.
func tellReclaimed(bus Events, kind string, freed uint64) {
	tell(bus, kind, "prune", "", "reclaimed", strconv.FormatUint(freed, 10))
}

// imageEvent announces what was done to an image, which is named as the user did.
func (a *imageAPI) imageEvent(action string, img *image.Image, name string) {
	attrs := mapping(maps.Clone(img.Labels))
	attrs["name"] = name
	a.events.Publish(events.Event{Type: "image", Action: action, ID: img.ID, Attrs: attrs})
}

// removedEvents announces what a removal of images came to; id is that of the image that was asked for, if it was one.
func (a *imageAPI) removedEvents(removed []image.Removed, id string) {
	for _, r := range removed {
		if r.Untagged != "" && !strings.Contains(r.Untagged, "@") {
			tell(a.events, "image", "untag", cmp.Or(id, r.Untagged), "name", r.Untagged)
		}
		if strings.HasPrefix(r.Deleted, "sha256:") {
			tell(a.events, "image", "delete", r.Deleted, "name", r.Deleted)
		}
	}
}
