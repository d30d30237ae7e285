// Package fault owns the kinds of error that Sampan's floors hand to each other. A kind says what a caller can do about
// an error (look elsewhere, correct the request, try again); the message says what happened, to what, and what to do.
// The package knows nothing of HTTP or gRPC: internal/server/docker/errors.go and internal/rpc map kinds to codes.
package fault

import (
	"errors"
	"fmt"
)

// Kind classifies an error by what its receiver can do about it.
type Kind uint8

// The kinds. The zero value, Internal, is what an error without a kind counts as.
const (
	Internal           Kind = iota // a bug or a broken host; nothing the caller can correct
	InvalidArgument                // the request is malformed; the caller corrects it
	NotFound                       // the object named does not exist
	Conflict                       // the object exists already, is in use, or is in a state that forbids the request
	AlreadyExists                  // a Conflict over a name or address that is taken
	OutOfDate                      // the version given is not the newest: read again and retry
	NotModified                    // the object already is as requested
	Forbidden                      // the caller may not do this
	Unauthorized                   // the caller's credentials are missing or wrong
	Unavailable                    // a dependency is away for now: retry later
	NotImplemented                 // known to the API, not built or not possible here
	FailedPrecondition             // the host or cluster is not in the state the request needs
	DeadlineExceeded               // the operation took longer than it was given
	Exhausted                      // a pool, quota or disk is full
)

var kindNames = [...]string{"internal", "invalid argument", "not found", "conflict", "already exists", "out of date",
	"not modified", "forbidden", "unauthorized", "unavailable", "not implemented", "failed precondition",
	"deadline exceeded", "exhausted"}

// String returns the kind's name in lower case words.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Error is an error with a kind. Err is never nil.
type Error struct {
	Kind Kind
	Err  error
}

// Error is the wrapped error's text: the kind is for programs.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of the given kind; format and args are those of fmt.Errorf, %w included.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// As returns err with the given kind, or nil if err is nil. The message is unchanged.
func As(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain, Internal when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of the given kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
