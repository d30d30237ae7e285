package main

import (
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sampan-cloud/sampan/internal/node/config"
)

// TestProxyIsForRegistriesOnly: the proxy that is configured, else that of the environment, is used for registries, and nothing else finds it there.
func TestProxyIsForRegistriesOnly(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "no_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTPS_PROXY", "http://proxy.example:3128")
	t.Setenv("NO_PROXY", "inside.example")
	t.Setenv("http_proxy", "http://other.example:1")
	setProxy(config.Proxies{HTTP: "http://configured.example:1"})
	choose, environ := takeProxy()
	if !slices.Contains(environ, "HTTP_PROXY=http://configured.example:1") || slices.Contains(environ, "http_proxy=http://other.example:1") {
		t.Errorf("the builder's environment: %q", environ)
	}
	for url, want := range map[string]string{"https://registry.example/v2/": "http://proxy.example:3128", "https://inside.example/v2/": "", "http://registry.example/v2/": "http://configured.example:1"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, err := choose(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := ""; p != nil && p.String() != want || p == nil && want != got {
			t.Errorf("%s: by proxy %v, want %q", url, p, want)
		}
	}
	for _, name := range []string{"HTTPS_PROXY", "NO_PROXY", "https_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is still in the environment", name, v)
		}
	}
}

// TestFlagsOfKeys: keys without a field of their own are given on the command line as in the file, and wrong ones are named
// by their flag.
func TestFlagsOfKeys(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--default-ulimit", "nofile=10:20", "--default-ulimit=core=0", "--default-shm-size=1M", "--init", "-s", "overlay2", "--max-concurrent-downloads=4"}, ""},
		{[]string{"--storage-driver=zfs"}, `--storage-driver: "zfs" cannot be had`},
		{[]string{"--default-ulimit=nofile=20:10"}, "ulimit soft limit must be less than or equal to hard limit"},
		{[]string{"--max-concurrent-downloads=many"}, "invalid"},
	} {
		cmd := command()
		cmd.SetErr(io.Discard)
		cmd.SetArgs(append([]string{"--validate", "--config-file", os.DevNull}, c.args...))
		err := cmd.Execute()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}
