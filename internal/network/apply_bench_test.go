package network_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/cloud"
	"github.com/sampan-cloud/sampan/internal/network/nettest"
)

// BenchmarkThroughput compares one TCP stream between tasks on two hosts, by the virtual IP, with one between the hosts:
//
//	go test ./internal/network -run ^$ -bench Throughput -benchtime 20x
func BenchmarkThroughput(b *testing.B) {
	s := newSwarm(b, 2)
	s.network(redID, "red", "10.10.0.0/24", 4097)
	s.service(redID, "web", "10.10.0.2")
	s.apply()
	s.member(redID, 1, "web", "web.1", "10.10.0.11")
	s.member(redID, 0, "caller", "caller", "10.10.0.20")
	web, caller := s.task(1, "web.1", on(redID, "10.10.0.11")), s.task(0, "caller", on(redID, "10.10.0.20"))
	s.apply()
	var direct, through, ratios []float64
	for b.Loop() {
		direct = append(direct, stream(b, s.hosts[0].Space, s.hosts[1].Space, s.hosts[1].Addr.String()))
		through = append(through, stream(b, caller, web, "10.10.0.2"))
		ratios = append(ratios, through[len(through)-1]/direct[len(direct)-1])
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(median(direct), "direct-Gbit/s")
	b.ReportMetric(median(through), "overlay-Gbit/s")
	b.ReportMetric(median(ratios), "of-host-to-host")
}

// stream sends for half a second and returns Gbit/s as the receiver had them.
func stream(b *testing.B, from, to *nettest.Space, addr string) float64 {
	b.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) { l, err = net.Listen("tcp4", "0.0.0.0:5001"); return err }); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		var c net.Conn
		if err := from.Do(func() (err error) { c, err = net.Dial("tcp4", addr+":5001"); return err }); err != nil {
			_ = l.Close()
			return
		}
		defer func() { _ = c.Close() }()
		buf := make([]byte, 256<<10)
		for end := time.Now().Add(time.Second / 2); time.Now().Before(end); {
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
	start, total, buf := time.Now(), 0, make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		if total += n; err == io.EOF {
			return float64(total) * 8 / time.Since(start).Seconds() / 1e9
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOneMember is what it costs a host with twenty sandboxes that one of five thousand members on a hundred nodes
// becomes ready, or stops to be.
func BenchmarkOneMember(b *testing.B) {
	s := newSwarm(b, 1)
	s.network(redID, "red", "10.10.0.0/16", 4097)
	for i := range 99 {
		name := fmt.Sprintf("far%d", i)
		s.view.Peers[name] = &cloud.Peer{NodeID: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 98, 0, byte(i + 1)})},
			Ingress: cloud.IngressLeg{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 100)})}, Mark: uint32(i+50) << cloud.IngressMarkShift}}
	}
	for i := range 500 {
		name := fmt.Sprintf("service%d", i)
		s.service(redID, name, netip.AddrFrom4([4]byte{10, 10, 200 + byte(i/250), byte(i % 250)}).String())
		for j := range 10 {
			n := i*10 + j
			m := s.member(redID, 0, name, fmt.Sprintf("%s.%d", name, j), netip.AddrFrom4([4]byte{10, 10, byte(10 + n/250), byte(n % 250)}).String())
			m.NodeID = fmt.Sprintf("far%d", n%99)
		}
	}
	start := time.Now()
	s.apply()
	b.Logf("first view: %s", time.Since(start))
	start = time.Now()
	for i := range 20 {
		s.task(0, fmt.Sprintf("box%d", i), on(redID, netip.AddrFrom4([4]byte{10, 10, 5, byte(i)}).String()))
	}
	b.Logf("twenty sandboxes: %s", time.Since(start))
	start = time.Now()
	s.apply()
	b.Logf("no change: %s", time.Since(start))
	m := s.view.Members[cloud.MemberID("service7.3", redID)]
	for b.Loop() {
		m.Ready = !m.Ready
		s.apply()
	}
}
