package docker

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

var clusterSpecForTest = cloud.ClusterSpec{Name: "default", TaskHistoryLimit: 5}

// swaggerFile is the description of the API that the module of its types carries.
func swaggerFile(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatalf("where is the API's module: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "swagger.yaml")
}
