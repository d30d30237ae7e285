package keeper

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// BuildOf tells one build of a program from every other: the identity that Go's linker writes into it, which follows
// from all that went into it, flags included; for a program that was stripped of it, the digest of the file.
func BuildOf(program string) (string, error) {
	f, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if id := goBuildID(f); id != "" {
		return id, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		return "", fmt.Errorf("reading %s: %w", program, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// goBuildID reads the note that the linker leaves, "" if there is none.
func goBuildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	defer f.Close()
	section := f.Section(".note.go.buildid")
	if section == nil || section.Size > 4096 {
		return ""
	}
	note, err := section.Data()
	if err != nil || len(note) < 16 {
		return ""
	}
	// The sizes of name ("Go", padded to four bytes) and text, the note's type, the name, the text.
	size := f.ByteOrder.Uint32(note[4:])
	if !bytes.HasPrefix(note[12:], []byte("Go\x00\x00")) || int64(size) > int64(len(note)-16) {
		return ""
	}
	return string(note[16 : 16+size])
}

// checkProgram makes sure that a program is a keeper that this daemon can talk to, before the running one becomes it.
func checkProgram(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "version").Output()
	if err != nil {
		return fault.New(fault.FailedPrecondition, "%s does not run: %w: install the sampan-keeper of this release", program, err)
	}
	var protocol int
	if i := bytes.LastIndex(out, []byte("protocol ")); i < 0 {
		return fault.New(fault.FailedPrecondition, "%s is no keeper: it calls itself %q", program, bytes.TrimSpace(out))
	} else if _, err := fmt.Sscanf(string(out[i:]), "protocol %d", &protocol); err != nil || protocol != ProtocolVersion {
		return fault.New(fault.FailedPrecondition, "%s speaks protocol %d, this sampand %d: install the sampan-keeper of this release", program, protocol, ProtocolVersion)
	}
	return nil
}
