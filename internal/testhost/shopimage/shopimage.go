// Package shopimage builds the images of examples/shop, for the demo, the cluster tests and the bench.
package shopimage

import (
	"context"
	"fmt"
	"os"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/testhost"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// Services are the shop's services in the order in which the demo shows them, with the port each publishes, 0 for none.
var Services = []struct {
	Name      string
	Published int
}{{"order", 0}, {"billing", 0}, {"console", 8081}, {"terminal", 8082}, {"api", 8080}}

// Build returns the docker-archive of a service's image, tagged shop/NAME:1: FROM scratch, one static binary at /shop.
func Build(ctx context.Context, service string) ([]byte, error) {
	root, err := testhost.ModuleRoot()
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "shop-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	bin, err := testimage.GoBinary(ctx, root, "./examples/shop/"+service, tmp)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", service, err)
	}
	return testimage.Build(ctx, testimage.Spec{
		Tags:   []string{"shop/" + service + ":1"},
		Files:  map[string]testimage.File{"/shop": {HostPath: bin, Mode: 0o755}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/shop"}, ExposedPorts: map[string]struct{}{"8080/tcp": {}}},
		Health: &testimage.Health{Test: []string{"CMD", "/shop", "probe", "http://127.0.0.1:8080/healthz"},
			Interval: 2 * time.Second, StartPeriod: 10 * time.Second, StartInterval: 200 * time.Millisecond},
	})
}
