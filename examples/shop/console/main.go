// Console shows every order of the shop: it asks each order task, which it finds by the name tasks.order.
package main

import (
	"cmp"
	"context"
	"html/template"
	"net"
	"net/http"
	"slices"

	"github.com/sampan-cloud/sampan/examples/shop/shop"
)

var page = template.Must(template.New("orders").Parse(`<!doctype html><title>Shop console</title>
<style>body{font:16px system-ui;margin:2em}td,th{padding:.2em 1em;text-align:left}</style>
<h1>Orders</h1><table><tr><th>order<th>item<th>quantity<th>price<th>invoice<th>taken by<th>billed by</tr>
{{range .}}<tr><td>{{.ID}}<td>{{.Item}}<td>{{.Quantity}}<td>{{.Cents}} ct<td>{{.Invoice}}<td>{{.OrderBy}}<td>{{.BilledBy}}</tr>
{{else}}<tr><td colspan=7>no orders yet</tr>{{end}}</table>`))

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		orders, err := gather(r.Context())
		if err != nil {
			shop.Fail(w, http.StatusBadGateway, err)
			return
		}
		shop.JSON(w, orders)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		orders, err := gather(r.Context())
		if err != nil {
			shop.Fail(w, http.StatusBadGateway, err)
			return
		}
		_ = page.Execute(w, orders)
	})
	shop.Main("console", mux)
}

func gather(ctx context.Context) ([]shop.Order, error) {
	tasks, err := net.DefaultResolver.LookupHost(ctx, "tasks.order")
	if err != nil {
		return nil, err
	}
	all := []shop.Order{}
	for _, addr := range tasks {
		var some []shop.Order
		if err := shop.GetJSON(ctx, "http://"+net.JoinHostPort(addr, "8080")+"/orders", &some); err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b shop.Order) int {
		return cmp.Or(a.Placed.Compare(b.Placed), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}
