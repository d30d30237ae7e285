package image

import (
	"testing"

	"github.com/sampan-cloud/sampan/internal/fault"
	"github.com/sampan-cloud/sampan/internal/testhost/testimage"
)

func TestLoginChecksCredentialsWithTheRegistry(t *testing.T) {
	for name, f := range map[string]testimage.Faults{
		"basic": {Basic: true, User: "me", Password: "secret"},
		"token": {Bearer: true, User: "me", Password: "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registry(t)
			r.Set(f)
			s := open(t)
			if _, err := s.Login(t.Context(), Auth{ServerAddress: r.Host, Username: "me", Password: "secret"}); err != nil {
				t.Errorf("the right password: %v", err)
			}
			if _, err := s.Login(t.Context(), Auth{ServerAddress: r.Host, Username: "me", Password: "wrong"}); !fault.Is(err, fault.Unauthorized) {
				t.Errorf("a wrong password: %v", err)
			}
			r.Set(testimage.Faults{Fail: 503})
			if _, err := s.Login(t.Context(), Auth{ServerAddress: r.Host, Username: "me", Password: "secret"}); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a registry that is out of order: %v", err)
			}
		})
	}
	if _, err := open(t).Login(t.Context(), Auth{ServerAddress: "not a host"}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no address: %v", err)
	}
}

func TestResolveStoresNothing(t *testing.T) {
	r := registry(t)
	ref, _ := pushed(t, r)
	s := open(t)
	desc, platforms, err := s.Resolve(t.Context(), ref, Auth{})
	if err != nil || desc.Digest == "" || len(platforms) != 1 || platforms[0].OS != "linux" {
		t.Errorf("%v, %v, %v", desc, platforms, err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("images on the host: %v, %v", all, err)
	}
	if _, _, err := s.Resolve(t.Context(), r.Host+"/team/nothing:1", Auth{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
	if _, _, err := s.Resolve(t.Context(), "Not A Name", Auth{}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no name: %v", err)
	}
}
