package lb

import (
	"net/netip"
	"testing"
)

// FuzzParse: whatever the entry, reading it ends, and with addresses that are ones or none.
func FuzzParse(f *testing.F) {
	request, err := list(netip.MustParseAddr("10.10.0.2"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request.Data)
	six, _ := list(netip.MustParseAddr("fd00::2"))
	f.Add(six.Data)
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0x80})
	f.Add([]byte{2, 0, 0, 0, 3, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		flow, err := parse(b)
		if err == nil && flow.Member.IsValid() && flow.Member.Is4In6() {
			t.Errorf("member %v", flow.Member)
		}
	})
}

func TestParseReply(t *testing.T) {
	request, err := list(netip.MustParseAddr("10.10.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := parse(request.Data); err != nil || f.Member != netip.MustParseAddr("10.10.0.2") {
		t.Errorf("got %+v, %v", f, err)
	}
}
