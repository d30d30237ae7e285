// Billing bills orders over gRPC on port 9000.
package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sampan-cloud/sampan/examples/shop/shop"
	"github.com/sampan-cloud/sampan/examples/shop/shoppb"
)

// prices in cents; what is not listed costs 500.
var prices = map[string]int64{"tea": 350, "rice": 220, "noodles": 790, "dumplings": 650}

type biller struct {
	shoppb.UnimplementedBillingServer
	host   string
	issued atomic.Int64
}

// Bill issues an invoice.
func (b *biller) Bill(_ context.Context, r *shoppb.BillRequest) (*shoppb.Invoice, error) {
	if r.Quantity < 1 || r.Quantity > 1000 {
		return nil, status.Errorf(codes.InvalidArgument, "quantity %d: want 1 to 1000", r.Quantity)
	}
	price, ok := prices[r.Item]
	if !ok {
		price = 500
	}
	b.issued.Add(1)
	return &shoppb.Invoice{Number: "INV-" + r.OrderId, Cents: price * r.Quantity, BilledBy: b.host}, nil
}

func main() {
	host, _ := os.Hostname()
	shop.Main("billing", http.NewServeMux(), func(ctx context.Context) error {
		l, err := net.Listen("tcp", ":9000")
		if err != nil {
			return err
		}
		s := grpc.NewServer()
		shoppb.RegisterBillingServer(s, &biller{host: host})
		go func() { <-ctx.Done(); s.GracefulStop() }()
		if err := s.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
}
