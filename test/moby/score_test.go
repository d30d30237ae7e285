package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestVerdictsOfPackagesAndSuites(t *testing.T) {
	for _, c := range []struct {
		pkg, printed, passed, failed, skip string
		crashed                            bool
	}{
		{pkg: "volume", printed: "=== RUN   TestA\n--- PASS: TestA (0.1s)\n=== RUN   TestB\n=== RUN   TestB/part\n--- FAIL: TestB (0.1s)\n    --- PASS: TestB/part (0.1s)\nFAIL\n",
			passed: "TestA", failed: "TestB", skip: "^(TestA|TestB)$"},
		{pkg: "volume", printed: "=== RUN   TestA\n--- PASS: TestA (0.1s)\n=== RUN   TestB\npanic: oh\n", passed: "TestA", failed: "TestB", skip: "^(TestA|TestB)$", crashed: true},
		{pkg: "XSuite", printed: "=== RUN   TestXSuite\n=== RUN   TestXSuite/TestA\n=== RUN   TestXSuite/TestB\n--- FAIL: TestXSuite (0.2s)\n    --- PASS: TestXSuite/TestA (0.1s)\n" +
			"    --- FAIL: TestXSuite/TestB (0.1s)\n        --- FAIL: TestXSuite/TestB/part (0.1s)\nFAIL\n", passed: "TestA", failed: "TestB", skip: "^TestXSuite$/^(TestA|TestB)$"},
		{pkg: "XSuite", printed: "=== RUN   TestXSuite\n=== RUN   TestXSuite/TestA\n=== RUN   TestXSuite/TestB\npanic: oh\n", failed: "TestB", skip: "^TestXSuite$/^(TestB)$", crashed: true},
	} {
		s := newScore(c.pkg)
		crashed, err := s.read(strings.NewReader(c.printed), io.Discard)
		if err != nil || crashed != c.crashed || s.finished() != c.skip ||
			!slices.Equal(s.with("PASS"), strings.Fields(c.passed)) || !slices.Equal(s.with("FAIL"), strings.Fields(c.failed)) {
			t.Errorf("%q: passed %v, failed %v, finished %s, crashed %v, %v", c.printed, s.with("PASS"), s.with("FAIL"), s.finished(), crashed, err)
		}
	}
}
