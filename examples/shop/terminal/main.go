// Terminal is the till: GET /buy?item=tea&quantity=2 places an order through the API and prints a receipt.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/sampan-cloud/sampan/examples/shop/shop"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /buy", buy)
	shop.Main("terminal", mux)
}

func buy(w http.ResponseWriter, r *http.Request) {
	item, quantity := r.FormValue("item"), int64(1)
	if q := r.FormValue("quantity"); q != "" {
		n, err := strconv.ParseInt(q, 10, 64)
		if err != nil {
			http.Error(w, "quantity: "+err.Error(), http.StatusBadRequest)
			return
		}
		quantity = n
	}
	if item == "" {
		http.Error(w, "say what: /buy?item=tea&quantity=2", http.StatusBadRequest)
		return
	}
	body, _ := json.Marshal(map[string]any{"item": item, "quantity": quantity})
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://api:8080/orders", bytes.NewReader(body))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	resp, err := shop.Client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	var o shop.Order
	if err := json.Unmarshal(answer, &o); err != nil || resp.StatusCode != http.StatusCreated {
		http.Error(w, fmt.Sprintf("%s: %s", resp.Status, answer), http.StatusBadGateway)
		return
	}
	fmt.Fprintf(w, "SHOP\n%-12s x%-4d %4d.%02d\ninvoice %s\nthank you\n", o.Item, o.Quantity, o.Cents/100, o.Cents%100, o.Invoice)
}
