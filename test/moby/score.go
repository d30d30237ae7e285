package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// score is what became of a package's tests; a test with parts counts as one.
type score struct {
	pkg     string
	results map[string]string // PASS, FAIL, SKIP
}

func newScore(pkg string) score { return score{pkg, map[string]string{}} }

// read takes the verdicts off what a test program prints with -test.v, and copies it all to w. It reports whether the
// program broke off; the test that was under way has then failed.
func (s *score) read(r io.Reader, w io.Writer) (crashed bool, err error) {
	var under string
	verdict := verdicts(s.pkg)
	ended := false
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if _, werr := io.WriteString(w, line); werr != nil {
			return false, werr
		}
		if m := verdict.FindStringSubmatch(line); m != nil {
			s.results[m[2]] = m[1]
			under = ""
		}
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "=== RUN   "); ok {
			under = testOf(s.pkg, name)
		}
		switch strings.TrimSpace(line) {
		case "PASS", "FAIL":
			ended = true
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return false, err
		}
	}
	if ended {
		return false, nil
	}
	if under == "" {
		return false, fmt.Errorf("the tests of %s broke off before the first of them", s.pkg)
	}
	s.results[under] = "FAIL"
	return true, nil
}

// finished is a regular expression of the tests that have a verdict.
func (s *score) finished() string {
	if len(s.results) == 0 {
		return ""
	}
	return pattern(s.pkg, "^("+strings.Join(slices.Sorted(maps.Keys(s.results)), "|")+")$")
}

// with are the tests of a verdict, sorted; those that are counted apart are left out unless they passed.
func (s *score) with(v string) (names []string) {
	for name, r := range s.results {
		if r == v && (v == "PASS" || apart[s.pkg+"."+name] == "") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// asides are the tests that cannot pass here, whatever the daemon does, and did not.
func (s *score) asides() (names []string) {
	for name, r := range s.results {
		if r == "FAIL" && apart[s.pkg+"."+name] != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// String names every miss and what is counted apart.
func (s score) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s: %d of %d\n", s.pkg, len(s.with("PASS")), len(s.with("PASS"))+len(s.with("FAIL")))
	for _, name := range s.with("FAIL") {
		fmt.Fprintf(&b, "  missed  %s\n", name)
	}
	for _, name := range s.asides() {
		fmt.Fprintf(&b, "  apart   %s: %s\n", name, apart[s.pkg+"."+name])
	}
	return b.String()
}

// table is the score of all packages in Markdown.
func table(all []score) string {
	var b strings.Builder
	b.WriteString("| package | passed | run | counted apart | skipped by itself |\n|---|---|---|---|---|\n")
	for _, s := range all {
		passed := len(s.with("PASS"))
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", s.pkg, passed, passed+len(s.with("FAIL")), len(s.asides()), len(s.with("SKIP")))
	}
	return b.String()
}
