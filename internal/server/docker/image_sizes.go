package docker

import (
	"strings"

	"github.com/sampan-cloud/sampan/internal/engine/image"
)

// imageSizes tells what layers cost that several images stand on.
type imageSizes struct {
	users map[string]int   // layer with those below it → images that have it
	sizes map[string]int64 // in bytes
}

// sizesOf looks at all images of this host.
func sizesOf(images []image.Image) imageSizes {
	s := imageSizes{users: map[string]int{}, sizes: map[string]int64{}}
	for i := range images {
		s.each(&images[i], func(layer string, size int64) {
			s.users[layer]++
			s.sizes[layer] = size
		})
	}
	return s
}

// each visits an image's layers. A layer is the same only on top of the same ones.
func (s imageSizes) each(img *image.Image, visit func(layer string, size int64)) {
	for i := range min(len(img.Layers), len(img.LayerSizes)) {
		visit(strings.Join(img.Layers[:i+1], " "), img.LayerSizes[i])
	}
}

// shared is the size of an image's layers that others have, too.
func (s imageSizes) shared(img *image.Image) (sum int64) {
	s.each(img, func(layer string, size int64) {
		if s.users[layer] > 1 {
			sum += size
		}
	})
	return sum
}

// total is the size of all layers, each counted once.
func (s imageSizes) total() (sum int64) {
	for _, size := range s.sizes {
		sum += size
	}
	return sum
}

// needed is the size of the layers of some of the images, each counted once.
func (s imageSizes) needed(images []image.Image, of func(*image.Image) bool) (sum int64) {
	seen := map[string]bool{}
	for i := range images {
		if of(&images[i]) {
			s.each(&images[i], func(layer string, size int64) {
				if !seen[layer] {
					seen[layer] = true
					sum += size
				}
			})
		}
	}
	return sum
}
