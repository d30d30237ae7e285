package testimage

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestTheSameSpecGivesTheSameBytes(t *testing.T) {
	spec := Spec{
		Tags:   []string{"x:1"},
		Files:  map[string]File{"/a/b": Text("b"), "/c": {Symlink: "a/b"}, "/s": {Sparse: 1 << 20}, "/d": {Dir: true, Mode: 0o700}},
		Config: ocispec.ImageConfig{Env: []string{"A=1"}, Labels: map[string]string{"k": "v", "l": "w"}},
	}
	first, err := Build(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Build(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("a second build has other bytes")
	}
}

func TestGoProgramNeedsNothingToRun(t *testing.T) {
	bin, err := GoProgram(t.Context(), `package main

import "fmt"

func main() { fmt.Print("it runs") }
`, "prog", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), bin).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "it runs") {
		t.Errorf("%q, %v", out, err)
	}
}
