package logs

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func decodeSlow(line []byte) (Entry, error) {
	var w wireEntry
	err := json.Unmarshal(line, &w)
	return Entry{Stderr: w.Stream == "stderr", Time: w.Time, Line: []byte(w.Log), Attrs: w.Attrs}, err
}

var wireLines = []string{
	`{"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.00000006Z"}`,
	`{"log":"a\"\\\r\u0009\u0000\u003cä\u00e4\u2028<>&\/\b\f\n","stream":"stderr","time":"2026-01-02T03:04:05Z"}` + "\n",
	`{"log":"","stream":"stdout","time":"2026-01-02T03:04:05.123456789+02:00"}`,
	`{"log":"x\\","time":"2026-01-02T03:04:05.1Z","stream":"stdout"}`,
	`{"log":"x\n","stream":"stdout","attrs":{"a":"b"},"time":"2026-01-02T03:04:05.1Z"}`,
	`{"log":"\ud83d\ude00\n","stream":"stdout","time":"2026-01-02T03:04:05.1Z"}`,
	`{"log":"x\n","stream":"stdout","time":"2026-01-02T03:04:05.1Z","other":1}`,
	`{ "log": "x\n", "stream": "stdout", "time": "2026-01-02T03:04:05.1Z" }`,
	`{"log":"x\n","stream":"stdout","time":"yesterday"}`,
	`{"log":"x\n","stream":"std\u006fut","time":"2026-01-02T03:04:05.1Z"}`,
	`{"log":"x\n","stream":"stdout","stream":"stderr","time":"2026-01-02T03:04:05.1Z"}`,
	`{"log":"x","stream":"stdout","time":"2026-01-02T03:04:05.1Z"`,
	`{"log":"x`, `{"log":"x\`, `{"log":"\u00`, `{"log":"\q"}`, "{\"log\":\"a\tb\"}", "{\"log\":\"\xff\"}", ``, `null`, `[]`,
}

// FuzzDecode: the quick way and encoding/json read every line alike.
func FuzzDecode(f *testing.F) {
	for _, l := range wireLines {
		f.Add([]byte(l))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		want, werr := decodeSlow(line)
		got, gerr := decode(bytes.Clone(line), new(slab))
		if (werr == nil) != (gerr == nil) {
			t.Fatalf("%q: %v, should be %v", line, gerr, werr)
		}
		if gerr != nil {
			return
		}
		if got.Stderr != want.Stderr || !got.Time.Equal(want.Time) || !bytes.Equal(got.Line, want.Line) || !reflect.DeepEqual(got.Attrs, want.Attrs) {
			t.Fatalf("%q:\n%+v, should be\n%+v", line, got, want)
		}
	})
}

// TestDecodeIsQuick: what the keeper writes does not go the long way.
func TestDecodeIsQuick(t *testing.T) {
	for _, l := range wireLines[:4] {
		if _, ok := decodeFast([]byte(l), new(slab)); !ok {
			t.Errorf("%s is read the long way", l)
		}
	}
}

// TestLinesStay: a line is not changed by reading on.
func TestLinesStay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var b strings.Builder
	for i := range 5000 {
		b.WriteString(`{"log":"` + strings.Repeat(string(rune('a'+i%26)), i%200) + `\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, Options{Stdout: true, Tail: -1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []Entry
	for {
		e, err := r.Next(t.Context())
		if err != nil {
			break
		}
		all = append(all, e)
	}
	if len(all) != 5000 {
		t.Fatalf("%d lines", len(all))
	}
	for i, e := range all {
		if want := strings.Repeat(string(rune('a'+i%26)), i%200) + "\n"; string(e.Line) != want {
			t.Fatalf("line %d is %q", i, e.Line)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	line := `{"log":"` + `2026-01-02T03:04:05.678Z INFO order=00012345 customer=977 item=\"paper boat, large\" state=paid took=12ms\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}` + "\n"
	if err := os.WriteFile(path, bytes.Repeat([]byte(line), 200_000), 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(line)) * 200_000)
	for b.Loop() {
		r, err := Open(path, Options{Stdout: true, Tail: -1}, nil)
		if err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := r.Next(b.Context()); err != nil {
				break
			}
		}
		_ = r.Close()
	}
}
