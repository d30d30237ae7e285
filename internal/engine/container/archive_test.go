package container

import "testing"

// TestEntriesAreNamedAsAsked: a path that ends in a dot asks for what is in the folder, one without for the folder.
func TestEntriesAreNamedAsAsked(t *testing.T) {
	for name, want := range map[string][3]string{
		"/": {"/", ".", "/"}, ".": {"/", ".", "."}, "/.": {"/", ".", "."}, "./": {"/", ".", "."}, "/./": {"/", ".", "."},
		"a/b": {"/a", "b", "b"}, "/a/b/": {"/a/b", ".", "b"}, "a/b/.": {"/a/b", ".", "."}, "a/b/./": {"/a/b", ".", "."}, "a/..": {"/", ".", "/"},
	} {
		dir, base, entry := splitSource(name)
		if got := [3]string{dir, base, entry}; got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
