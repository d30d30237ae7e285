// API is the shop's front: JSON over HTTP, handed on to order and console.
package main

import (
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/sampan-cloud/sampan/examples/shop/shop"
)

func main() {
	mux := http.NewServeMux()
	mux.Handle("POST /orders", to("http://order:8080"))
	mux.Handle("GET /orders", to("http://console:8080"))
	shop.Main("api", mux)
}

func to(base string) http.Handler {
	target, err := url.Parse(base)
	if err != nil {
		panic(err) // a constant
	}
	return &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target); r.SetXForwarded() },
		Transport: shop.Client.Transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			shop.Fail(w, http.StatusBadGateway, err)
		},
	}
}
