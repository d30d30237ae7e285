package mirror

import (
	"strings"

	"github.com/sampan-cloud/sampan/internal/cloud"
)

// Prefix starts every key. The number rises when the layout changes in a way that old managers cannot read.
const Prefix = "/sampan/v1/"

// DefaultProject is where objects without a project go.
const DefaultProject = "default"

// Two folders beside the kinds: names that are taken, and requests that were answered.
const (
	nameFolder = "name"
	idemFolder = "idem"
)

// ObjectKey is where an object is stored.
func ObjectKey(project string, kind cloud.Kind, id string) string {
	return Prefix + project + "/" + string(kind) + "/" + id
}

// nameKey holds the ID of the object that has the name. A name is the last part, so it may hold any byte.
func nameKey(project string, kind cloud.Kind, name string) string {
	return Prefix + project + "/" + nameFolder + "/" + string(kind) + "/" + name
}

func idemKey(project, key string) string {
	if project == "" {
		project = DefaultProject
	}
	return Prefix + project + "/" + idemFolder + "/" + key
}

// parseKey tells what a key holds: an object (kind and id set), a record (name or request), or nothing this version
// knows.
func parseKey(key string) (kind cloud.Kind, id string, record bool) {
	rest, ok := strings.CutPrefix(key, Prefix)
	if !ok {
		return "", "", false
	}
	_, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", "", false
	}
	folder, id, ok := strings.Cut(rest, "/")
	if !ok {
		return "", "", false
	}
	if folder == nameFolder || folder == idemFolder {
		return "", "", true
	}
	return cloud.Kind(folder), id, false
}

// validPart reports whether s can be a project or an ID: one part of a key.
func validPart(s string) bool {
	return s != "" && !strings.ContainsAny(s, "/\x00") && len(s) <= 128
}
