package docker

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// apiVersion is a version of the Engine API, 1000 times the major number plus the minor one.
type apiVersion int

// The versions served. The newest is that of github.com/moby/moby/api in go.mod.
const (
	minVersion apiVersion = 1024
	maxVersion apiVersion = 1056
)

// String returns the version as paths spell it, without the v.
func (v apiVersion) String() string { return fmt.Sprintf("%d.%d", int(v)/1000, int(v)%1000) }

// parseVersion reads "1.44". Further parts ("1.44.0") are read and ignored.
func parseVersion(s string) (apiVersion, error) {
	parts := strings.Split(s, ".")
	nums := make([]int, 2)
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n > 999 {
			return 0, fault.New(fault.InvalidArgument, "invalid API version %q: it must look like %s", s, maxVersion)
		}
		if i < 2 {
			nums[i] = int(n)
		}
	}
	return apiVersion(nums[0]*1000 + nums[1]), nil
}
