package server

import (
	"context"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// A delete that meets a create under way, of a daemon that has died since, must not say that there is nothing.
func TestDeleteWaitsForACreate(t *testing.T) {
	s := &Server{containers: map[string]*container{}, making: map[string]chan struct{}{}}
	if !s.reserve("c") {
		t.Fatal("not free")
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.delete(over, "c"); !fault.Is(err, fault.DeadlineExceeded) {
		t.Errorf("while it is being made: %v", err)
	}
	done := make(chan error)
	go func() { done <- s.delete(t.Context(), "c") }()
	s.release("c") // it failed
	if err := <-done; !fault.Is(err, fault.NotFound) {
		t.Errorf("afterwards: %v", err)
	}
}
