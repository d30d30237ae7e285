package image

import (
	"fmt"
	"strings"
)

// expandWord takes quotes and backslashes off s as a shell would, and puts in the values of variables outside of single
// quotes: $NAME, ${NAME}, ${NAME:-word if unset or empty} and ${NAME:+word if not}, with or without the colon.
func expandWord(s string, env []string) (string, error) {
	var out strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quote != '\'':
			if i++; i == len(s) {
				out.WriteByte('\\')
				break
			}
			if quote == '"' && !strings.ContainsRune(`"\$`, rune(s[i])) {
				out.WriteByte('\\')
			}
			out.WriteByte(s[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case c == '$' && quote != '\'':
			value, n, err := variable(s[i+1:], env)
			if err != nil {
				return "", err
			}
			if n == 0 {
				out.WriteByte('$')
			}
			out.WriteString(value)
			i += n
		default:
			out.WriteByte(c)
		}
	}
	return out.String(), nil
}

// variable is the value of the reference that s begins with, behind its dollar sign, and how many bytes of s that is; 0
// when it is none.
func variable(s string, env []string) (value string, n int, err error) {
	if inner, ok := strings.CutPrefix(s, "{"); ok {
		end := strings.IndexByte(inner, '}')
		if end < 0 {
			return "", 0, fmt.Errorf("missing } in %q", "$"+s)
		}
		value, err = braced(inner[:end], env)
		return value, end + 2, err
	}
	name := nameAt(s)
	value, _ = lookup(env, name)
	return value, len(name), nil
}

// braced is the value of what stands between ${ and }.
func braced(s string, env []string) (string, error) {
	name := nameAt(s)
	if name == "" {
		return "", fmt.Errorf("bad substitution: ${%s}", s)
	}
	value, set := lookup(env, name)
	op, ok := strings.CutPrefix(s[len(name):], ":")
	if ok {
		set = set && value != ""
	}
	switch {
	case op == "" && !ok:
		return value, nil
	case strings.HasPrefix(op, "-") && !set, strings.HasPrefix(op, "+") && set:
		return expandWord(op[1:], env)
	case strings.HasPrefix(op, "-"):
		return value, nil
	case strings.HasPrefix(op, "+"):
		return "", nil
	}
	return "", fmt.Errorf("unsupported modifier in ${%s}: only - and + are known", s)
}

// nameAt is the name of a variable that s begins with.
func nameAt(s string) string {
	i := 0
	for i < len(s) && (s[i] == '_' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || i > 0 && s[i] >= '0' && s[i] <= '9') {
		i++
	}
	return s[:i]
}

func lookup(env []string, name string) (string, bool) {
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok && k == name && name != "" {
			return v, true
		}
	}
	return "", false
}
