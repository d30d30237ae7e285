// Package undo keeps the steps that take back a multi-step change to the host when a later step fails.
//
//	u := undo.New()
//	defer u.Run()
//	link := ... ; u.Add(func() error { return netlink.LinkDel(link) })
//	...
//	u.Done() // everything worked: keep it
package undo

import "errors"

// Stack holds undo steps, newest first. It is not safe for concurrent use.
type Stack struct {
	steps []func() error
	done  bool
}

// New returns an empty stack.
func New() *Stack { return &Stack{} }

// Add registers the step that takes back what was just done.
func (s *Stack) Add(step func() error) { s.steps = append(s.steps, step) }

// Done says that the whole change succeeded: Run then does nothing.
func (s *Stack) Done() { s.done = true }

// Run takes back every registered step, newest first, unless Done was called; it runs all of them whatever fails and
// returns their errors joined. A second Run does nothing.
func (s *Stack) Run() error {
	if s.done {
		return nil
	}
	s.done = true
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		errs = append(errs, s.steps[i]())
	}
	return errors.Join(errs...)
}
