package main

import (
	"regexp"
	"strings"
)

// cliTests is the package of moby's command-line tests. They come in suites, each of which stands for a package here.
const cliTests = "integration-cli"

// isSuite tells a suite's name, such as DockerCLIRunSuite, from a package's.
func isSuite(pkg string) bool { return strings.HasSuffix(pkg, "Suite") }

// cliEnviron is what the command-line tests look for besides: the command, a folder of their own, and that builds go
// through the daemon's classic interface, as the command has no plugin for another. The command's configuration is in
// home, which tests change for another; DOCKER_CONFIG, which goes before it, is empty.
func cliEnviron(o *options, home string) []string {
	return []string{"TEST_CLIENT_BINARY=" + o.cli, "DEST=" + o.out, "DOCKER_BUILDKIT=0", "DOCKER_CLI_HINTS=false",
		"HOME=" + home, "DOCKER_CONFIG="}
}

// pattern is the regular expression of the tests of pkg that match run; of a suite they are parts of one test.
func pattern(pkg, run string) string {
	if !isSuite(pkg) {
		return run
	}
	return "^Test" + pkg + "$/" + run
}

var (
	ofPackage = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): ([^ /]+) \(`)
	ofSuite   = regexp.MustCompile(`^    --- (PASS|FAIL|SKIP): [^ /]+/([^ /]+) \(`)
)

// verdicts is the form of the lines with a verdict on a test of pkg.
func verdicts(pkg string) *regexp.Regexp {
	if isSuite(pkg) {
		return ofSuite
	}
	return ofPackage
}

// testOf is the test that a line "=== RUN name" of pkg belongs to; "" for a suite as a whole.
func testOf(pkg, name string) string {
	if isSuite(pkg) {
		_, name, _ = strings.Cut(name, "/")
	}
	name, _, _ = strings.Cut(name, "/")
	return name
}
