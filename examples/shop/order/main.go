// Order takes orders and has each billed. Every replica keeps the orders it took; the console gathers them.
package main

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sampan-cloud/sampan/examples/shop/shop"
	"github.com/sampan-cloud/sampan/examples/shop/shoppb"
)

func main() {
	b := &book{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", b.place)
	mux.HandleFunc("GET /orders", b.list)
	shop.Main("order", mux)
}

type book struct {
	mu     sync.Mutex
	orders []shop.Order
}

func (b *book) place(w http.ResponseWriter, r *http.Request) {
	var want struct {
		Item     string `json:"item"`
		Quantity int64  `json:"quantity"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&want); err != nil {
		shop.Fail(w, http.StatusBadRequest, err)
		return
	}
	// A connection an order: each is balanced over the billing tasks.
	conn, err := grpc.NewClient("passthrough:///billing:9000", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		shop.Fail(w, http.StatusInternalServerError, err)
		return
	}
	defer conn.Close()
	id := rand.Text()[:10]
	invoice, err := shoppb.NewBillingClient(conn).Bill(r.Context(), &shoppb.BillRequest{OrderId: id, Item: want.Item, Quantity: want.Quantity})
	if err != nil {
		shop.Fail(w, http.StatusBadGateway, err)
		return
	}
	host, _ := os.Hostname()
	o := shop.Order{ID: id, Item: want.Item, Quantity: want.Quantity, Cents: invoice.Cents, Invoice: invoice.Number,
		Placed: time.Now().UTC(), OrderBy: host, BilledBy: invoice.BilledBy}
	b.mu.Lock()
	b.orders = append(b.orders, o)
	b.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	shop.JSON(w, o)
}

func (b *book) list(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	orders := slices.Clone(b.orders)
	b.mu.Unlock()
	if orders == nil {
		orders = []shop.Order{}
	}
	shop.JSON(w, orders)
}
