package agent

import (
	"context"

	"github.com/sampan-cloud/sampan/internal/rpc"
)

// OverPool makes Managers of the node's pool of connections.
func OverPool(p *rpc.Managers) Managers { return pool{p} }

type pool struct{ *rpc.Managers }

func (p pool) Connect(ctx context.Context) (Link, error) {
	c, err := p.Conn(ctx)
	if err != nil {
		return Link{}, err
	}
	beats, err := p.Dial(c.Addr)
	if err != nil {
		return Link{}, err
	}
	return Link{
		Dispatcher: rpc.NewDispatcherClient(c), Heartbeats: rpc.NewDispatcherClient(beats),
		Report: func(err error) error { return p.Report(c, err) }, Close: beats,
	}, nil
}
