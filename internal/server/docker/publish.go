package docker

import (
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

// removedEvents announces what a removal came to of images, not of their layers.
func (a *imageAPI) removedEvents(removed []image.Removed) {
	for _, r := range removed {
		if r.Untagged != "" && !strings.Contains(r.Untagged, "@") {
			tell(a.events, "image", "untag", r.ImageID, "name", r.Untagged)
		}
		if r.Deleted != "" && r.Deleted == r.ImageID {
			tell(a.events, "image", "delete", r.Deleted, "name", r.Deleted)
		}
	}
}
