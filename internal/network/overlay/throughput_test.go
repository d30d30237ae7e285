package overlay_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/network/nettest"
	"github.com/sampan-cloud/sampan/internal/network/overlay"
)

// BenchmarkThroughput compares one TCP stream through an overlay with one between the hosts themselves:
//
//	go test ./internal/network/overlay -run ^$ -bench Throughput
func BenchmarkThroughput(b *testing.B) {
	lab := nettest.New(b)
	hosts := []*nettest.Space{lab.Host("one"), lab.Host("two")}
	boxes := []*nettest.Space{lab.Space("box1"), lab.Space("box2")}
	for i, h := range hosts {
		d := overlay.New(overlay.Config{Dir: h.Dir + "/netns", Host: h.NS})
		mine, other := netip.AddrFrom4([4]byte{10, 10, 0, byte(2 + i)}), netip.AddrFrom4([4]byte{10, 10, 0, byte(3 - i)})
		if err := d.Apply(b.Context(), overlay.Network{ID: "net", VNI: 4097, Local: h.Addr,
			Remotes: map[netip.Addr]netip.Addr{other: hosts[1-i].Addr}}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := d.Remove(b.Context(), "net"); err != nil {
				b.Error(err)
			}
		})
		if _, err := d.Join(b.Context(), "net", overlay.Port{Key: "x", NetNS: boxes[i].Path(), Interface: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(mine, 24)}}); err != nil {
			b.Fatal(err)
		}
	}
	var direct, through []float64
	for b.Loop() {
		direct = append(direct, stream(b, hosts[0], hosts[1], hosts[1].Addr.String()))
		through = append(through, stream(b, boxes[0], boxes[1], "10.10.0.3"))
	}
	var sum float64
	for i := range direct {
		b.Logf("host to host %.2f Gbit/s, overlay %.2f Gbit/s, ratio %.3f", direct[i], through[i], through[i]/direct[i])
		sum += through[i] / direct[i]
	}
	b.ReportMetric(sum/float64(len(direct)), "of-host-to-host")
}

// stream sends for a second and returns Gbit/s as the receiver had them.
func stream(b *testing.B, from, to *nettest.Space, addr string) float64 {
	b.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) { l, err = net.Listen("tcp4", addr+":0"); return err }); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		var c net.Conn
		if err := from.Do(func() (err error) { c, err = net.Dial("tcp4", l.Addr().String()); return err }); err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		buf := make([]byte, 256<<10)
		end := time.Now().Add(2 * time.Second)
		for time.Now().Before(end) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	start, total := time.Now(), 0
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		total += n
		if err == io.EOF {
			break
		} else if err != nil {
			b.Fatal(err)
		}
	}
	return float64(total) * 8 / time.Since(start).Seconds() / 1e9
}
