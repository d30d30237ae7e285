package server

import (
	"time"
	"unicode/utf8"
)

// maxLine is how much of a line without an end is put into one entry; Docker's number.
const maxLine = 16 << 10

var streamNames = [...]string{1: "stdout", 2: "stderr"}

// appendEntry appends one entry of Docker's json-file format: line with a newline if it had one. attrs is a JSON
// object or nothing.
func appendEntry(dst, line []byte, newline bool, stream int, attrs []byte, at time.Time) []byte {
	dst = append(dst, '{')
	if len(line) > 0 || newline {
		dst = append(dst, `"log":"`...)
		dst = appendEscaped(dst, line)
		if newline {
			dst = append(dst, `\n`...)
		}
		dst = append(dst, `",`...)
	}
	dst = append(dst, `"stream":"`...)
	dst = append(dst, streamNames[stream]...)
	dst = append(dst, '"')
	if len(attrs) > 0 {
		dst = append(dst, `,"attrs":`...)
		dst = append(dst, attrs...)
	}
	dst = append(dst, `,"time":"`...)
	dst = at.AppendFormat(dst, time.RFC3339Nano)
	return append(dst, "\"}\n"...)
}

// appendEscaped appends s as the inside of a JSON string, escaping what Docker escapes and as it does: HTML's special
// characters and the two line separators too, every byte that is not UTF-8 as U+FFFD.
func appendEscaped(dst, s []byte) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		b := s[i]
		if b < utf8.RuneSelf {
			if b >= 0x20 && b != '\\' && b != '"' && b != '<' && b != '>' && b != '&' {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			switch b {
			case '\\', '"':
				dst = append(dst, '\\', b)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&0xf])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\u202`...)
			dst = append(dst, hex[r&0xf])
		default:
			i += size
			continue
		}
		i += size
		start = i
	}
	return append(dst, s[start:]...)
}
