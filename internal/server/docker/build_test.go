package docker

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/build"
	"github.com/sampan-cloud/sampan/internal/fault"
)

// fakeBuilder stands for the program that builds.
type fakeBuilder struct {
	records []build.Record
	pruned  build.PruneRequest
}

func (f *fakeBuilder) Forward(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(map[string]string{"path": r.URL.Path, "upgrade": r.Header.Get("Upgrade"), "request": r.Header.Get(build.HeaderRequest), "body": string(body)})
}

func (f *fakeBuilder) Usage(context.Context) ([]build.Record, error) { return f.records, nil }

func (f *fakeBuilder) Prune(_ context.Context, r build.PruneRequest) (build.PruneReport, error) {
	f.pruned = r
	return build.PruneReport{IDs: []string{"a"}, Freed: 7}, nil
}

func TestBuildParametersReachTheBuilder(t *testing.T) {
	l := newLab(t)
	status, _, body := l.do(t, "POST", `/v1.45/build?t=a:1&t=b&dockerfile=D&nocache=1&q=1&buildargs={"A":"1","B":null}&labels={"l":"v"}&cachefrom=["c"]&networkmode=none`+
		`&ulimits=[{"Name":"nofile","Soft":10,"Hard":20}]&target=x&shmsize=64&extrahosts=h:1.2.3.4`, "application/x-tar", "context")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	var got struct{ Path, Request, Body string }
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	var req build.Request
	if err := json.Unmarshal([]byte(got.Request), &req); err != nil {
		t.Fatal(err)
	}
	one := "1"
	if got.Path != "/build" || got.Body != "context" || req.Version != "1" || len(req.Tags) != 2 || req.Dockerfile != "D" || !req.NoCache || !req.Quiet ||
		*req.Args["A"] != one || req.Args["B"] != nil || len(req.Args) != 2 || req.Labels["l"] != "v" || req.CacheFrom[0] != "c" || req.Network != "none" ||
		req.Ulimits[0] != "nofile=10:20" || req.Target != "x" || req.ShmSize != 64 || req.ExtraHosts[0] != "h:1.2.3.4" {
		t.Errorf("the builder was asked %+v by %+v", req, got)
	}
}

func TestBuildCacheInDiskUsage(t *testing.T) {
	b := &fakeBuilder{records: []build.Record{{ID: "a", Size: 5, InUse: true}, {ID: "b", Size: 7}, {ID: "c", Size: 11, Shared: true}}}
	u, err := cacheUsage(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if u.TotalCount != 3 || u.TotalSize != 23 || u.ActiveCount != 1 || u.Reclaimable != 7 {
		t.Errorf("usage %+v", u)
	}
}

func TestBuildPruneRules(t *testing.T) {
	day := 24 * time.Hour
	if d, err := keepDuration(filters{"unused-for": {"24h"}}); err != nil || d.Round(day) != day {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := keepDuration(filters{}); err != nil || d != 0 {
		t.Errorf("%v, %v", d, err)
	}
}

// TestSessionsAskForTheirProtocol: what is wrong with a request for a session is told in the order of asking.
func TestSessionsAskForTheirProtocol(t *testing.T) {
	for upgrade, says := range map[string]string{"": "no upgrade proto", "foo": "protocol foo not supported", "h2c": "names no session"} {
		r := httptest.NewRequest(http.MethodPost, "/session", nil)
		if upgrade != "" {
			r.Header.Set("Upgrade", upgrade)
		}
		err := (&buildAPI{}).session(nil, &request{Request: r, version: maxVersion})
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", upgrade, err)
		}
	}
}

// A client that asks to upgrade the connection of a build gets its build all the same.
func TestBuildIsNoTunnel(t *testing.T) {
	l := newLab(t)
	conn, err := net.Dial("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /build?t=a HTTP/1.1\r\nHost: docker\r\nContent-Length: 1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n0"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn) // which is closed: no request follows a build's
	if err != nil || !strings.Contains(string(answer), `"upgrade":""`) {
		t.Errorf("%q %v", answer, err)
	}
}
