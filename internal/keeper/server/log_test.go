package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/keeper"
)

func testLog(t *testing.T, dir string, spec keeper.LogSpec) *logFile {
	t.Helper()
	spec.Driver, spec.Path = "json-file", filepath.Join(dir, "c-json.log")
	l, err := newLog(spec, filepath.Join(dir, "journal"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestEntry(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.UTC)
	for _, tc := range []struct{ name, line, want string }{
		{"plain", "hello", `{"log":"hello\n","stream":"stderr","time":"2026-01-02T03:04:05.00000006Z"}`},
		{"empty", "", `{"log":"\n","stream":"stderr","time":"2026-01-02T03:04:05.00000006Z"}`},
		{"escapes", "a\"\\\r\t\x00\x1f<>&", `{"log":"a\"\\\r\u0009\u0000\u001f\u003c\u003e\u0026\n","stream":"stderr","time":"2026-01-02T03:04:05.00000006Z"}`},
		{"not UTF-8", "\xff\xc3ä\u2028\u2029", `{"log":"\ufffd\ufffdä\u2028\u2029\n","stream":"stderr","time":"2026-01-02T03:04:05.00000006Z"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(appendEntry(nil, []byte(tc.line), true, 2, nil, at)); got != tc.want+"\n" {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// However the bytes come in, the entries are the same.
func TestEntriesDoNotDependOnReads(t *testing.T) {
	in := []byte(strings.Repeat("x", maxLine) + "\n" + strings.Repeat("y", maxLine-1) + "\nshort\n\n" + strings.Repeat("z", 3*maxLine) + "end")
	write := func(step int) string {
		dir := t.TempDir()
		l := testLog(t, dir, keeper.LogSpec{})
		l.now = func() time.Time { return time.Unix(1, 0) }
		for p := in; len(p) > 0; {
			n := min(step, len(p))
			l.write(1, p[:n])
			p = p[n:]
		}
		l.finish(1)
		l.close()
		text, err := os.ReadFile(l.spec.Path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	want := write(len(in))
	if n := strings.Count(want, "\n"); n != 9 {
		t.Errorf("%d entries, want 9", n)
	}
	for _, step := range []int{1, 7, 2048, maxLine, maxLine + 1} {
		if write(step) != want {
			t.Errorf("read in steps of %d, the entries are others", step)
		}
	}
}

func TestPartsOfALineHaveOneTime(t *testing.T) {
	l := testLog(t, t.TempDir(), keeper.LogSpec{})
	now := time.Unix(0, 0)
	l.now = func() time.Time { now = now.Add(time.Second); return now }
	l.write(1, []byte(strings.Repeat("x", 2*maxLine)+"end\nnext\n"))
	l.close()
	text, _ := os.ReadFile(l.spec.Path)
	times := map[string]int{}
	for line := range bytes.Lines(text) {
		var e struct{ Time string }
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		times[e.Time]++
	}
	if len(times) != 2 {
		t.Errorf("times %v, want one for the three parts and one for the next line", times)
	}
}

// A keeper that dies at any point of a write is followed by one that knows whether it happened.
func TestJournalRecovers(t *testing.T) {
	const first, second = "first\n", "second\n"
	for _, tc := range []struct {
		name    string
		written func(entry []byte) []byte // what of the second entry's write reached the file
	}{
		{"before the write", func([]byte) []byte { return nil }},
		{"half-way", func(e []byte) []byte { return e[:len(e)/2] }},
		{"after the write", func(e []byte) []byte { return e }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			l := testLog(t, dir, keeper.LogSpec{})
			l.write(1, []byte(first))
			// The second write, cut off: what flush does up to the point of the kill.
			entry := appendEntry(nil, []byte("second"), true, 1, nil, time.Unix(1, 0))
			l.j.intend(1, l.size, l.size+int64(len(entry)), mark{done: uint64(len(first + second))})
			if _, err := l.f.Write(tc.written(entry)); err != nil {
				t.Fatal(err)
			}
			l.close()

			l = testLog(t, dir, keeper.LogSpec{})
			l.write(1, []byte(first + second)[l.done(1):])
			l.close()
			text, _ := os.ReadFile(l.spec.Path)
			if n := bytes.Count(text, []byte("\n")); n != 2 || bytes.Count(text, []byte("second")) != 1 {
				t.Errorf("log\n%s", text)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprint("compress ", compress), func(t *testing.T) {
			dir := t.TempDir()
			l := testLog(t, dir, keeper.LogSpec{MaxSize: 200, MaxFiles: 3, Compress: compress})
			for i := range 20 {
				l.write(1, fmt.Appendf(nil, "line %d\n", i))
			}
			l.close()
			ext := ""
			if compress {
				ext = ".gz"
			}
			var all []byte
			for _, name := range []string{".2" + ext, ".1" + ext, ""} {
				f, err := os.Open(l.spec.Path + name)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				var r io.Reader = f
				if strings.HasSuffix(name, ".gz") {
					z, err := gzip.NewReader(f)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Contains(z.Extra, []byte(`"lastTime"`)) {
						t.Errorf("the header does not tell the time of the last entry: %q", z.Extra)
					}
					r = z
				}
				text, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, text...)
			}
			// Two entries have more than 100 bytes each: a file has three, the newest two files and what is current stay.
			if !bytes.Contains(all, []byte("line 19")) || bytes.Contains(all, []byte(`"line 1\n`)) {
				t.Errorf("kept:\n%s", all)
			}
			if list, _ := os.ReadDir(dir); len(list) != 4 { // and the journal
				t.Errorf("files: %v", list)
			}
		})
	}
}

// A disk that takes no more costs entries, not the container, and leaves no half entry.
func TestLogThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	l := testLog(t, dir, keeper.LogSpec{})
	l.write(1, []byte("kept\n"))
	good := l.f
	bad, err := os.Open(l.spec.Path) // for reading: writes fail
	if err != nil {
		t.Fatal(err)
	}
	l.f = bad
	l.write(1, []byte("lost\n"))
	_ = bad.Close()
	l.f = good
	l.write(1, []byte("kept too\n"))
	l.close()
	text, _ := os.ReadFile(l.spec.Path)
	if bytes.Contains(text, []byte("lost")) || bytes.Count(text, []byte("kept")) != 2 {
		t.Errorf("log\n%s", text)
	}
}

func TestRefusedLogs(t *testing.T) {
	for _, spec := range []keeper.LogSpec{{Driver: "syslog"}, {Driver: "json-file", Path: "relative"}} {
		if _, err := newLog(spec, filepath.Join(t.TempDir(), "journal"), slog.Default()); err == nil {
			t.Errorf("%+v: accepted", spec)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add([]byte("a\xff\u2028<"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var got string
		if err := json.Unmarshal(append(appendEscaped([]byte{'"'}, in), '"'), &got); err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		if want := strings.ToValidUTF8(string(in), "\ufffd"); len(got) < len(want) {
			t.Fatalf("%q became %q", in, got)
		}
	})
}
