package dispatcher

import (
	"bytes"
	"cmp"
	"slices"
)

// view is what one node is told, with the revision of each document. Removed documents stay as entries without content
// until the node has acknowledged their end.
type view struct {
	node    string
	nets    map[string]bool
	entries map[key]*entry
	log     []logged // changes in order, oldest first
	logFrom uint64   // the log has every change after this revision
	acked   uint64   // by the node in this term
}

type entry struct {
	doc []byte
	rev uint64
}

type logged struct {
	key
	rev uint64
}

func newView(node string) *view {
	return &view{node: node, nets: map[string]bool{}, entries: map[key]*entry{}}
}

// set puts or, without content, removes a document, and reports whether that changed anything.
func (v *view) set(k key, doc []byte, rev uint64) bool {
	e := v.entries[k]
	if e == nil {
		if doc == nil {
			return false
		}
		e = &entry{}
		v.entries[k] = e
	} else if bytes.Equal(e.doc, doc) {
		return false
	}
	e.doc, e.rev = doc, rev
	v.log = append(v.log, logged{k, rev})
	return true
}

// ack takes the node's word that it applied everything up to rev, and forgets what is needed no more.
func (v *view) ack(rev uint64) {
	if rev <= v.acked {
		return
	}
	v.acked = rev
	n, _ := slices.BinarySearchFunc(v.log, rev+1, func(l logged, rev uint64) int { return cmp.Compare(l.rev, rev) })
	for _, l := range v.log[:n] {
		if e := v.entries[l.key]; e != nil && e.doc == nil && e.rev <= rev {
			delete(v.entries, l.key)
		}
	}
	v.log = slices.Clone(v.log[n:])
	v.logFrom = max(v.logFrom, rev)
}

// since returns the documents that changed after rev; ok is false when the log does not reach back so far.
func (v *view) since(rev uint64) (changes map[key][]byte, ok bool) {
	if rev < v.logFrom {
		return nil, false
	}
	n, _ := slices.BinarySearchFunc(v.log, rev+1, func(l logged, rev uint64) int { return cmp.Compare(l.rev, rev) })
	changes = make(map[key][]byte, len(v.log)-n)
	for _, l := range v.log[n:] {
		if e := v.entries[l.key]; e != nil {
			changes[l.key] = e.doc
		} else {
			changes[l.key] = nil
		}
	}
	return changes, true
}

// all returns every document.
func (v *view) all() map[key][]byte {
	out := make(map[key][]byte, len(v.entries))
	for k, e := range v.entries {
		if e.doc != nil {
			out[k] = e.doc
		}
	}
	return out
}

// newest returns the revision of the last change.
func (v *view) newest() uint64 {
	if len(v.log) == 0 {
		return v.logFrom
	}
	return v.log[len(v.log)-1].rev
}
