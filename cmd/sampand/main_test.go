package main

import (
	"net/http"
	"os"
	"testing"
)

// TestProxyIsForRegistriesOnly: the proxy of the environment is used for registries, and nothing else finds it there.
func TestProxyIsForRegistriesOnly(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "no_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTPS_PROXY", "http://proxy.example:3128")
	t.Setenv("NO_PROXY", "inside.example")
	choose, _ := takeProxy()
	for url, want := range map[string]string{"https://registry.example/v2/": "http://proxy.example:3128", "https://inside.example/v2/": "", "http://registry.example/v2/": ""} {
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
