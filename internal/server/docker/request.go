package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// maxBody bounds the size of a JSON body; archives are streams and have no bound.
const maxBody = 16 << 20

// request is a request of the API with its version and parameters.
type request struct {
	*http.Request
	version apiVersion
	query   url.Values
}

// flag reads a boolean as Docker does: everything but "", 0, no, false and none is true.
func (r *request) flag(name string) bool { return r.flagOr(name, false) }

func (r *request) flagOr(name string, otherwise bool) bool {
	if !r.query.Has(name) {
		return otherwise
	}
	switch strings.ToLower(strings.TrimSpace(r.query.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// strictBool reads a boolean that must be one if it is given.
func (r *request) strictBool(name string) (bool, error) {
	s := r.query.Get(name)
	if s == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, fault.New(fault.InvalidArgument, "invalid value for %s: %q is not a boolean", name, s)
	}
	return b, nil
}

// integer reads an optional integer between low and high; nil when it is not given.
func (r *request) integer(name string, low, high int) (*int, error) {
	s := r.query.Get(name)
	if s == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "invalid value for %s: %q is not an integer", name, s)
	}
	if n < low || n > high {
		return nil, fault.New(fault.InvalidArgument, "invalid value for %s: %d is out of range", name, n)
	}
	return &n, nil
}

// seconds reads an optional timeout in seconds; negative is for ever.
func (r *request) seconds(name string) (*int, error) {
	return r.integer(name, math.MinInt32, math.MaxInt32)
}

// size reads the rows and columns of a terminal from h and w.
func (r *request) size() (rows, cols uint16, err error) {
	for _, p := range []struct {
		name, what string
		into       *uint16
	}{{"h", "height", &rows}, {"w", "width", &cols}} {
		s := r.query.Get(p.name)
		n, err := strconv.ParseInt(s, 10, 64)
		if err == nil && (n < 0 || n > math.MaxUint32) {
			err = strconv.ErrRange
		}
		if err != nil {
			var parse *strconv.NumError
			if errors.As(err, &parse) {
				err = parse.Err
			}
			return 0, 0, fault.New(fault.InvalidArgument, "invalid resize %s %q: %w: it must be a number from 0 to %d", p.what, s, err, math.MaxUint16)
		}
		*p.into = uint16(min(n, math.MaxUint16))
	}
	return rows, cols, nil
}

// objectVersion reads the version of a cluster object that an update is based on.
func (r *request) objectVersion(what string) (uint64, error) {
	s := r.query.Get("version")
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fault.New(fault.InvalidArgument, "invalid %s version '%s': it must be the number that inspect shows as Version.Index", what, s)
	}
	return v, nil
}

// platform reads an optional platform, as the JSON of OCI's, which versions before since pass over; nil when it is not
// given.
func (r *request) platform(since apiVersion) (*ocispec.Platform, error) {
	s := r.query.Get("platform")
	if s == "" || r.version < since {
		return nil, nil
	}
	return decodePlatform(s)
}

// platforms is platform for a parameter that may come several times, from version 1.52 on.
func (r *request) platforms(since apiVersion) (out []ocispec.Platform, err error) {
	if r.version < since {
		return nil, nil
	}
	for _, s := range r.query["platform"] {
		if s == "" {
			continue
		}
		p, err := decodePlatform(s)
		if err != nil {
			return nil, err
		}
		out = append(out, *p)
	}
	if len(out) > 1 && r.version < 1052 {
		return nil, fault.New(fault.InvalidArgument, "multiple platform parameters are not supported in this API version; use API version 1.52 or later")
	}
	return out, nil
}

func decodePlatform(s string) (*ocispec.Platform, error) {
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return nil, fault.New(fault.InvalidArgument, "failed to parse platform: %w", err)
	}
	if p.OS == "" && (p.Architecture != "" || p.Variant != "") || p.Architecture == "" && p.OS != "" {
		return nil, fault.New(fault.InvalidArgument, "platform %s: both OS and Architecture must be provided", s)
	}
	return &p, nil
}

// timestamp reads an optional time given in seconds since 1970, with an optional fraction; the zero time when it is
// not given.
func (r *request) timestamp(name string) (time.Time, error) {
	t, err := parseTimestamp(r.query.Get(name))
	if err != nil {
		return time.Time{}, fault.New(fault.InvalidArgument, "invalid value for %q: %w", name, err)
	}
	return t, nil
}

// parseTimestamp reads SECONDS[.FRACTION]; "" is the zero time. Clients turn dates and durations into this form, but
// some leave dates as they are, so RFC 3339 is taken too.
func parseTimestamp(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.UTC(), nil
	}
	whole, fraction, dotted := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither seconds since 1970 nor a date of RFC 3339", s)
	}
	var nsec int64
	if dotted && fraction != "" {
		if len(fraction) > 9 {
			fraction = fraction[:9]
		}
		n, err := strconv.ParseUint(fraction, 10, 32)
		if err != nil {
			return time.Time{}, fmt.Errorf("%q is neither seconds since 1970 nor a date of RFC 3339", s)
		}
		nsec = int64(n)
		for range 9 - len(fraction) {
			nsec *= 10
		}
	}
	return time.Unix(sec, nsec).UTC(), nil
}

// decode reads the JSON body into out. An empty body leaves out as it is.
func (r *request) decode(out any) error {
	ct := r.Header.Get("Content-Type")
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		if ct == "" {
			return nil
		}
		return checkJSON(ct)
	}
	if err := checkJSON(ct); err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return fault.New(fault.InvalidArgument, "read the request's body: %w", err)
	}
	if len(body) > maxBody {
		return fault.New(fault.InvalidArgument, "the request's body is longer than %d bytes", maxBody)
	}
	return decodeJSON(body, out)
}

// checkJSON refuses a body that does not call itself JSON.
func checkJSON(contentType string) error {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fault.New(fault.InvalidArgument, "malformed Content-Type header (%s): %w", contentType, err)
	}
	if media != "application/json" {
		return fault.New(fault.InvalidArgument, "unsupported Content-Type header (%s): must be 'application/json'", contentType)
	}
	return nil
}

// errNoJSON is the answer to a body without a value.
var errNoJSON = fault.New(fault.InvalidArgument, "invalid JSON: got EOF while reading request body")

// decodeJSON reads exactly one JSON value. Unknown fields are passed over: clients of other versions send them.
func decodeJSON(body []byte, out any) error {
	dec := json.NewDecoder(strings.NewReader(string(body)))
	if err := dec.Decode(out); err != nil {
		var wrongType *json.UnmarshalTypeError
		switch {
		case errors.Is(err, io.EOF):
			return errNoJSON
		case errors.As(err, &wrongType) && wrongType.Field != "":
			return fault.New(fault.InvalidArgument, "invalid JSON: %s cannot be %s", wrongType.Field, article(wrongType.Value))
		}
		return fault.New(fault.InvalidArgument, "invalid JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fault.New(fault.InvalidArgument, "invalid JSON: unexpected content after JSON")
	}
	return nil
}

func article(noun string) string {
	if noun != "" && strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// writeJSON answers with v.
func writeJSON(w *response, status int, v any) error {
	body, err := marshal(v)
	if err != nil {
		return fault.New(fault.Internal, "encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone: nobody to tell
	return nil
}

// marshal encodes v without escaping <, > and &, which images and labels have, and ends it with a newline.
func marshal(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// list returns s, or an empty list instead of nil: clients want [] and not null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// mapping returns m, or an empty map instead of nil.
func mapping[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return m
}
