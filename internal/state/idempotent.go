package state

import (
	"context"

	"github.com/sampan-cloud/sampan/internal/fault"
)

// IdempotencyTx is what the transactions of every implementation offer beside WriteTx: records of which object a
// request has made. A record is forgotten after a day.
type IdempotencyTx interface {
	// Recall returns the ID that was remembered under the key.
	Recall(project, key string) (id string, ok bool)
	// Remember keeps the ID under the key, in the same transaction as everything else.
	Remember(project, key, id string) error
}

// Once runs create in an Update, unless a request with the same idempotency key has succeeded within the last day: then
// it returns the ID which that one returned. An empty key always creates.
func Once(ctx context.Context, s Store, project, key string, create func(WriteTx) (id string, err error)) (string, error) {
	if len(key) > 256 {
		return "", fault.New(fault.InvalidArgument, "idempotency key of %d bytes: at most 256 are taken", len(key))
	}
	var id string
	err := s.Update(ctx, func(tx WriteTx) error {
		keyed, ok := tx.(IdempotencyTx)
		if !ok || key == "" {
			var err error
			id, err = create(tx)
			return err
		}
		if known, ok := keyed.Recall(project, key); ok {
			id = known
			return nil
		}
		var err error
		if id, err = create(tx); err != nil {
			return err
		}
		return keyed.Remember(project, key, id)
	})
	if err != nil {
		return "", err
	}
	return id, nil
}
