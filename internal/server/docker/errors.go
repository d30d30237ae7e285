package docker

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"syscall"

	"github.com/moby/moby/api/types/common"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// statusOf is the one place where kinds of error become HTTP status codes: those with which Docker answers the like.
func statusOf(err error) int {
	switch fault.KindOf(err) {
	case fault.InvalidArgument, fault.FailedPrecondition:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict, fault.AlreadyExists, fault.OutOfDate:
		return http.StatusConflict
	case fault.NotModified:
		return http.StatusNotModified
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.Unauthorized:
		return http.StatusUnauthorized
	case fault.Unavailable, fault.Exhausted:
		return http.StatusServiceUnavailable
	case fault.NotImplemented:
		return http.StatusNotImplemented
	case fault.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return http.StatusGatewayTimeout
	}
	for _, theirs := range []error{syscall.ENAMETOOLONG, syscall.ENOTDIR, syscall.ELOOP} { // of a path in the request
		if errors.Is(err, theirs) {
			return http.StatusBadRequest
		}
	}
	return http.StatusInternalServerError
}

// writeError answers with err in the shape all clients know. Those of before 1.24 print the body as it is.
func writeError(w http.ResponseWriter, version apiVersion, status int, err error) {
	if status == http.StatusNotModified { // has no body
		w.WriteHeader(status)
		return
	}
	if version != 0 && version < minVersion {
		http.Error(w, err.Error(), status)
		return
	}
	body, _ := json.Marshal(common.ErrorResponse{Message: err.Error()})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
