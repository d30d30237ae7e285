package logs

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// wireEntry is an entry as it is written.
type wireEntry struct {
	Log    string            `json:"log"`
	Stream string            `json:"stream"`
	Time   time.Time         `json:"time"`
	Attrs  map[string]string `json:"attrs"`
}

// decode reads one line of a log file. Lines as the keeper and Docker write them are read by hand, a tenth of the time
// that reflection takes; whatever looks different goes the long way.
func decode(line []byte, text *slab) (Entry, error) {
	if e, ok := decodeFast(line, text); ok {
		return e, nil
	}
	var w wireEntry
	if err := json.Unmarshal(line, &w); err != nil {
		return Entry{}, err
	}
	return Entry{Stderr: w.Stream == "stderr", Time: w.Time, Line: []byte(w.Log), Attrs: w.Attrs}, nil
}

// decodeFast reads {"log":"…","stream":"…","time":"…"}, the last two in any order and with nothing else.
func decodeFast(line []byte, text *slab) (e Entry, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"log":"`))
	if !ok {
		return e, false
	}
	end := closingQuote(rest)
	if end < 0 {
		return e, false
	}
	if e.Line, ok = unescape(text, rest[:end]); !ok {
		return e, false
	}
	rest = bytes.TrimRight(rest[end+1:], "\n")
	var stream, at bool
	for len(rest) > 1 {
		var value []byte
		if after, is := bytes.CutPrefix(rest, []byte(`,"stream":"`)); is && !stream {
			value, rest, ok = bytes.Cut(after, []byte{'"'})
			stream = ok && (string(value) == "stdout" || string(value) == "stderr")
			e.Stderr = string(value) == "stderr"
			ok = stream
		} else if after, is := bytes.CutPrefix(rest, []byte(`,"time":"`)); is && !at {
			value, rest, ok = bytes.Cut(after, []byte{'"'})
			e.Time, at = instant(value)
			ok = ok && at
		} else {
			return e, false
		}
		if !ok {
			return e, false
		}
	}
	return e, stream && at && string(rest) == "}"
}

// closingQuote finds the end of a JSON string's inside; -1 if it has none.
func closingQuote(b []byte) int {
	for from := 0; ; {
		i := bytes.IndexByte(b[from:], '"')
		if i < 0 {
			return -1
		}
		i += from
		// Escaped only by an odd number of backslashes before it.
		n := 0
		for n < i && b[i-1-n] == '\\' {
			n++
		}
		if n%2 == 0 {
			return i
		}
		from = i + 1
	}
}

// unescape takes the escapes out of a JSON string's inside. What needs the standard library's judgement is refused.
func unescape(text *slab, b []byte) ([]byte, bool) {
	out := text.take(len(b))[:0]
	for {
		i := bytes.IndexByte(b, '\\')
		piece := b
		if i >= 0 {
			piece = b[:i]
		}
		if !plain(piece) {
			return nil, false
		}
		out = append(out, piece...)
		if i < 0 {
			return out, true
		}
		if b = b[i+1:]; len(b) == 0 {
			return nil, false
		}
		c := b[0]
		b = b[1:]
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'u':
			r, ok := hex4(b)
			if !ok || utf16.IsSurrogate(r) {
				return nil, false
			}
			b = b[4:]
			out = utf8.AppendRune(out, r)
		default:
			return nil, false
		}
	}
}

// plain reports whether JSON takes b in a string as it stands: valid UTF-8 without control characters. It looks at eight
// bytes at a time, as nearly all of a log goes through here.
func plain(b []byte) bool {
	const (
		high   = 0x8080808080808080
		spaces = 0x2020202020202020
	)
	all, ascii := b, true
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		if (x-spaces)&^x&high != 0 { // a byte below 0x20 borrows from its high bit
			return false
		}
		ascii = ascii && x&high == 0
	}
	for _, c := range b {
		if c < 0x20 {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.Valid(all)
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// instant reads a time in UTC, 2006-01-02T15:04:05.999999999Z.
func instant(b []byte) (time.Time, bool) {
	var t time.Time
	if err := t.UnmarshalText(b); err != nil {
		return t, false
	}
	return t, true
}

// slab hands out memory for lines from larger pieces, as one allocation for each of a million lines costs more than
// reading them. What was handed out is not handed out again.
type slab struct{ left []byte }

const slabSize = 64 << 10

func (s *slab) take(n int) []byte {
	if n > slabSize/8 {
		return make([]byte, n)
	}
	if n > len(s.left) {
		s.left = make([]byte, slabSize)
	}
	out := s.left[:n:n]
	s.left = s.left[n:]
	return out
}
