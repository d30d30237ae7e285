package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/docker/cli/cli/flags"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sampan": main})
}

// TestScripts runs sampan as a user does. $DAEMON is the address of something that answers as a daemon would.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "sampan") // a socket's path must be short
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err != nil {
				return err
			}
			server := &http.Server{Handler: http.HandlerFunc(answer)}
			go server.Serve(l) //nolint:errcheck // closed at the end
			env.Defer(func() { server.Close() })
			env.Setenv("DAEMON", "unix://"+filepath.Join(dir, "s"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
	})
}

// answer stands in for a daemon, as far as the version command asks.
func answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.56")
	w.Header().Set("Ostype", "linux")
	switch filepath.Base(r.URL.Path) {
	case "_ping":
	case "version":
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"Platform":{"Name":"Sampan"},"Version":"9.8.7","ApiVersion":"1.56","MinAPIVersion":"1.24","Os":"linux","Arch":"amd64"}`))
	default:
		http.NotFound(w, r)
	}
}

func TestWhichDaemonIsSpokenTo(t *testing.T) {
	for _, c := range []struct {
		name    string
		opts    flags.ClientOptions
		env     map[string]string
		context string
		want    string // "": left to docker's own rules
	}{
		{name: "nothing said: this host's", want: defaultHost},
		{name: "-H", opts: flags.ClientOptions{Hosts: []string{"tcp://a"}}, env: map[string]string{"SAMPAN_HOST": "tcp://b"}, want: "tcp://a"},
		{name: "SAMPAN_HOST before DOCKER_HOST", env: map[string]string{"SAMPAN_HOST": "tcp://b", "DOCKER_HOST": "tcp://c"}, want: "tcp://b"},
		{name: "DOCKER_HOST", env: map[string]string{"DOCKER_HOST": "tcp://c"}},
		{name: "a context", context: "there"},
		{name: "the default context is no choice", context: "default", want: defaultHost},
		{name: "--context before SAMPAN_HOST", opts: flags.ClientOptions{Context: "there"}, env: map[string]string{"SAMPAN_HOST": "tcp://b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			chooseHost(&c.opts, func(k string) string { return c.env[k] }, c.context)
			got := ""
			if len(c.opts.Hosts) > 0 {
				got = c.opts.Hosts[0]
			}
			if got != c.want {
				t.Errorf("speaks to %q, want %q", got, c.want)
			}
		})
	}
}
