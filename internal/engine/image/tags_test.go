package image

import (
	"net/url"
	"slices"
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

// TestTags: all tags of a repository, with whatever way of logging in the registry asks for.
func TestTags(t *testing.T) {
	r := registry(t)
	s := open(t)
	for _, tag := range []string{"1", "2", "latest"} {
		ref := r.Host + "/team/app:" + tag
		load(t, s, testimage.Spec{Tags: []string{ref}, Files: map[string]testimage.File{"/a": {Data: []byte("a")}}})
		if err := s.Push(t.Context(), ref, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.Set(testimage.Faults{Bearer: true, User: "u", Password: "p"})
	got, err := s.Tags(t.Context(), r.Host+"/team/app", Auth{Username: "u", Password: "p"})
	slices.Sort(got)
	if want := []string{"1", "2", "latest"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := s.Tags(t.Context(), r.Host+"/team/app", Auth{Username: "u", Password: "wrong"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("with a wrong password: %v", err)
	}
	r.Set(testimage.Faults{})
	if _, err := s.Tags(t.Context(), r.Host+"/team/nothing", Auth{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of an unknown repository: %v", err)
	}
}

// TestNextLinkStaysOnItsHost: a registry cannot send credentials elsewhere.
func TestNextLinkStaysOnItsHost(t *testing.T) {
	from := &url.URL{Scheme: "https", Host: "r:5000", Path: "/v2/a/tags/list"}
	for header, want := range map[string]string{"": "", `</v2/a/tags/list?last=x>; rel="next"`: "https://r:5000/v2/a/tags/list?last=x", `<?n=2>; rel="next"`: "https://r:5000/v2/a/tags/list?n=2", `</x>; rel="prev"`: ""} {
		got, err := nextLink(header, from)
		if err != nil || (got == nil) != (want == "") || got != nil && got.String() != want {
			t.Errorf("%s: %v, %v; want %q", header, got, err, want)
		}
	}
	if got, err := nextLink(`<https://elsewhere/v2/a/tags/list>; rel="next"`, from); err == nil {
		t.Errorf("led to %s", got)
	}
}
