package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// source is one file of the tree as the parser sees it.
type source struct {
	path string // from the module's root
	text []byte
	file *ast.File
	set  *token.FileSet
}

func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.set.Position(n.Pos()).Line)
}

// imports tells whether name stands for the package path in this file.
func (s source) imports(name, path string) bool {
	for _, i := range s.file.Imports {
		if strings.Trim(i.Path.Value, `"`) != path {
			continue
		}
		if i.Name != nil {
			return i.Name.Name == name
		}
		return name == filepath.Base(path)
	}
	return false
}

// sources parses every Go file that somebody wrote, tests included.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s := source{text: text, set: token.NewFileSet()}
		if s.path, err = filepath.Rel(root, path); err != nil {
			return err
		}
		if s.file, err = parser.ParseFile(s.set, path, text, parser.ParseComments); err != nil {
			return err
		}
		if !ast.IsGenerated(s.file) {
			all = append(all, s)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// selector returns X and Sel of a plain X.Sel.
func selector(n ast.Node) (x, sel string) {
	if s, ok := n.(*ast.SelectorExpr); ok {
		if id, ok := s.X.(*ast.Ident); ok {
			return id.Name, s.Sel.Name
		}
	}
	return "", ""
}

// TestNamespacesAreEnteredOnThrowawayThreads: a thread that changes its namespaces ends afterwards and is never the
// main one, which cannot end and which /proc/self shows as the whole process. So nobody but sys/thread's callers changes
// them, and the libraries' own ways into a namespace, which take any thread, are not used.
func TestNamespacesAreEnteredOnThrowawayThreads(t *testing.T) {
	for _, s := range sources(t) {
		var throwaway []ast.Node // function literals that run on such a thread
		ast.Inspect(s.file, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if x, sel := selector(c.Fun); x == "thread" && sel == "Throwaway" {
					throwaway = append(throwaway, c.Args[0])
				}
			}
			return true
		})
		ast.Inspect(s.file, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				if id, ok := kv.Key.(*ast.Ident); ok && id.Name == "NetNS" && strings.HasSuffix(string(s.text[kv.Value.Pos()-1:kv.Value.End()-1]), ".FD()") {
					t.Errorf("%s: opens a socket by the library's own way into a namespace: open it inside netns.NS.Do", s.at(n))
				}
			}
			x, sel := selector(n)
			switch {
			case x == "" || !s.imports(x, "github.com/vishvananda/netns") && !s.imports(x, "github.com/vishvananda/netlink") &&
				!s.imports(x, "golang.org/x/sys/unix") && !s.imports(x, "syscall") && !s.imports(x, "github.com/google/nftables"):
			case sel == "WithNetNSFd" || sel == "NewHandleAt" || sel == "NewHandleAtFrom":
				t.Errorf("%s: %s enters a namespace on any thread: open the connection inside netns.NS.Do", s.at(n), sel)
			case sel == "Setns" || sel == "Unshare" || sel == "Set" && s.imports(x, "github.com/vishvananda/netns"):
				if !slices.ContainsFunc(throwaway, func(f ast.Node) bool { return f.Pos() <= n.Pos() && n.End() <= f.End() }) {
					t.Errorf("%s: %s.%s outside of thread.Throwaway", s.at(n), x, sel)
				}
			}
			return true
		})
	}
}

// TestTestsWaitForConditions: a test that sleeps is slow on a fast machine and flaky on a slow one.
func TestTestsWaitForConditions(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if x, sel := selector(n); x == "time" && sel == "Sleep" {
				t.Errorf("%s: a test sleeps: wait for what it waits for", s.at(n))
			}
			return true
		})
	}
}

// TestFilesAreAboutOneSubject: nobody reads a file of a thousand lines from end to end.
func TestFilesAreAboutOneSubject(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(string(s.text), "\n"); n > 800 {
			t.Errorf("%s has %d lines: split it by subject", s.path, n)
		}
	}
}

// TestExportedNamesAreDocumented: every package, and every name that others can use, says what it is.
func TestExportedNamesAreDocumented(t *testing.T) {
	documented := map[string]bool{} // folders
	var folders []string
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		dir := filepath.Dir(s.path)
		if s.file.Doc != nil {
			documented[dir] = true
		}
		if !slices.Contains(folders, dir) {
			folders = append(folders, dir)
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && ast.IsExported(receiver(d)) {
					t.Errorf("%s: %s has no doc comment", s.at(d), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					undocumented(t, s, d, spec)
				}
			}
		}
	}
	for _, dir := range folders {
		if !documented[dir] {
			t.Errorf("%s: the package has no doc comment", dir)
		}
	}
}

func undocumented(t *testing.T, s source, d *ast.GenDecl, spec ast.Spec) {
	t.Helper()
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() && d.Doc == nil && spec.Doc == nil {
			t.Errorf("%s: %s has no doc comment", s.at(spec), spec.Name.Name)
		}
		if st, ok := spec.Type.(*ast.StructType); ok && st.Fields.NumFields() > 15 && d.Doc == nil && spec.Doc == nil {
			t.Errorf("%s: %s has %d fields and no word on why", s.at(spec), spec.Name.Name, st.Fields.NumFields())
		}
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			if name.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
				t.Errorf("%s: %s has no doc comment", s.at(spec), name.Name)
			}
		}
	}
}

// receiver is the name of a method's type; of a function it is one that counts as exported.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return "Function"
	}
	t := d.Recv.List[0].Type
	for {
		switch e := t.(type) {
		case *ast.StarExpr:
			t = e.X
		case *ast.IndexExpr:
			t = e.X
		case *ast.IndexListExpr:
			t = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}
