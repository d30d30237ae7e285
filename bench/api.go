package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
)

// api speaks to an engine without the docker command, whose own start is a good part of what a user waits for.
type api struct{ *http.Client }

func (l *lab) api() api {
	return api{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.first().Socket)
	}}}}
}

// do sends a request and reads all of the answer; out, if there is one, takes its JSON.
func (a api) do(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, strings.TrimSpace(string(text)))
	case out != nil:
		return json.Unmarshal(text, out)
	}
	return nil
}

type made struct{ ID string }

// runAPI is a container's way from its creation until its exit is known.
func runAPI(ctx context.Context, l *lab) (float64, error) {
	a := l.api()
	defer a.CloseIdleConnections()
	var c made
	v, err := timed(func() error {
		if err := a.do(ctx, http.MethodPost, "/containers/create", map[string]any{"Image": image, "Cmd": []string{"true"}}, &c); err != nil {
			return err
		}
		if err := a.do(ctx, http.MethodPost, "/containers/"+c.ID+"/start", nil, nil); err != nil {
			return err
		}
		return a.do(ctx, http.MethodPost, "/containers/"+c.ID+"/wait", nil, nil)
	})
	if err != nil {
		return 0, err
	}
	return v, a.do(ctx, http.MethodDelete, "/containers/"+c.ID, nil, nil)
}

// execAPI is an exec's way from its creation to the end of its output.
func execAPI(ctx context.Context, l *lab) (float64, error) {
	if err := l.sleeping(ctx); err != nil {
		return 0, err
	}
	a := l.api()
	defer a.CloseIdleConnections()
	return repeated(func() error {
		var e made
		if err := a.do(ctx, http.MethodPost, "/containers/"+sleeper+"/exec", map[string]any{"Cmd": []string{"/tool", "true"}, "AttachStdout": true}, &e); err != nil {
			return err
		}
		return a.do(ctx, http.MethodPost, "/exec/"+e.ID+"/start", map[string]any{}, nil)
	})
}

const crowd, part = 200, 20

// startCrowd starts many containers and returns how fast the last ones start, as a share of how fast the first ones do.
func startCrowd(ctx context.Context, l *lab) (float64, error) {
	first, last, _, err := l.crowd(ctx)
	return float64(first) / float64(last), err
}

// crowdMemory is what each of many sleeping containers adds to the engine's own processes.
func crowdMemory(ctx context.Context, l *lab) (float64, error) {
	_, _, each, err := l.crowd(ctx)
	return each, err
}

func (l *lab) crowd(ctx context.Context) (first, last time.Duration, each float64, err error) {
	if err := l.up(ctx); err != nil {
		return 0, 0, 0, err
	}
	a := l.api()
	defer a.CloseIdleConnections()
	start := func() error {
		var c made
		if err := a.do(ctx, http.MethodPost, "/containers/create", map[string]any{"Image": image, "Cmd": []string{"sleep"}}, &c); err != nil {
			return err
		}
		return a.do(ctx, http.MethodPost, "/containers/"+c.ID+"/start", nil, nil)
	}
	if err := start(); err != nil { // what the first one costs is no slope
		return 0, 0, 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, 0, 0, err
	}
	before := testhost.PSS(l.first().Processes())
	for i := range crowd {
		began := time.Now()
		if err := start(); err != nil {
			return 0, 0, 0, err
		}
		switch took := time.Since(began); {
		case i < part:
			first += took
		case i >= crowd-part:
			last += took
		}
	}
	if err := settle(ctx); err != nil {
		return 0, 0, 0, err
	}
	return first, last, float64(testhost.PSS(l.first().Processes())-before) / crowd / 1e6, nil
}
