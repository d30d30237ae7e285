package shop

import "time"

// Order is one order as every service shows it.
type Order struct {
	ID       string    `json:"id"`
	Item     string    `json:"item"`
	Quantity int64     `json:"quantity"`
	Cents    int64     `json:"cents"`
	Invoice  string    `json:"invoice"`
	Placed   time.Time `json:"placed"`
	OrderBy  string    `json:"orderBy"`  // the order task that took it
	BilledBy string    `json:"billedBy"` // the billing task that billed it
}
