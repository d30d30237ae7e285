package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// codeOf is the gRPC code of each kind. Kinds that share a code are told apart by the Fault in the details.
var codeOf = map[fault.Kind]codes.Code{
	fault.Internal:           codes.Internal,
	fault.InvalidArgument:    codes.InvalidArgument,
	fault.NotFound:           codes.NotFound,
	fault.Conflict:           codes.FailedPrecondition,
	fault.AlreadyExists:      codes.AlreadyExists,
	fault.OutOfDate:          codes.Aborted,
	fault.NotModified:        codes.FailedPrecondition,
	fault.Forbidden:          codes.PermissionDenied,
	fault.Unauthorized:       codes.Unauthenticated,
	fault.Unavailable:        codes.Unavailable,
	fault.NotImplemented:     codes.Unimplemented,
	fault.FailedPrecondition: codes.FailedPrecondition,
	fault.DeadlineExceeded:   codes.DeadlineExceeded,
	fault.Exhausted:          codes.ResourceExhausted,
}

// kindOf is the way back for errors without a Fault: those that gRPC itself makes.
var kindOf = map[codes.Code]fault.Kind{
	codes.InvalidArgument:    fault.InvalidArgument,
	codes.NotFound:           fault.NotFound,
	codes.AlreadyExists:      fault.AlreadyExists,
	codes.Aborted:            fault.OutOfDate,
	codes.PermissionDenied:   fault.Forbidden,
	codes.Unauthenticated:    fault.Unauthorized,
	codes.Unavailable:        fault.Unavailable,
	codes.Unimplemented:      fault.NotImplemented,
	codes.FailedPrecondition: fault.FailedPrecondition,
	codes.DeadlineExceeded:   fault.DeadlineExceeded,
	codes.Canceled:           fault.Unavailable,
	codes.ResourceExhausted:  fault.Exhausted,
}

// ToStatus turns an error into the one that a gRPC handler returns: its kind becomes the code and travels along, so that
// FromStatus restores it. An error that is a gRPC status already is left alone. The interceptors of NewServer call it.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	kind := fault.KindOf(err)
	var f *fault.Error
	if !errors.As(err, &f) {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			kind = fault.DeadlineExceeded
		case errors.Is(err, context.Canceled):
			kind = fault.Unavailable
		}
	}
	st := status.New(codeOf[kind], err.Error())
	if detailed, derr := st.WithDetails(&Fault{Kind: uint32(kind)}); derr == nil {
		st = detailed
	}
	return st.Err()
}

// FromStatus turns the error of a gRPC call into one with a kind and the other side's message. The status stays
// reachable by errors.As, for RedirectOf.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	kind := kindOf[st.Code()]
	for _, d := range st.Details() {
		if f, ok := d.(*Fault); ok {
			kind = fault.Kind(f.GetKind())
		}
	}
	return &fault.Error{Kind: kind, Err: &remoteError{st}}
}

// remoteError shows the message alone, without gRPC's "rpc error: code = …" around it.
type remoteError struct{ st *status.Status }

func (e *remoteError) Error() string              { return e.st.Message() }
func (e *remoteError) GRPCStatus() *status.Status { return e.st }

// NotLeader is the answer of a manager that does not lead; addr is where the leader's RPC server is, "" if there is
// none at the moment.
func NotLeader(addr string) error {
	msg := "this manager does not lead the cluster; the leader is at " + addr
	if addr == "" {
		msg = "the cluster has no leader at the moment: try again"
	}
	st := status.New(codes.Unavailable, msg)
	if detailed, err := st.WithDetails(&Redirect{LeaderAddr: addr}, &Fault{Kind: uint32(fault.Unavailable)}); err == nil {
		st = detailed
	}
	return st.Err()
}

// RedirectOf returns the leader's address that an answer of a manager that does not lead names.
func RedirectOf(err error) (addr string, ok bool) {
	st, isStatus := status.FromError(err)
	if !isStatus {
		return "", false
	}
	for _, d := range st.Details() {
		if r, is := d.(*Redirect); is {
			return r.GetLeaderAddr(), true
		}
	}
	return "", false
}
