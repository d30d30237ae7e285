package image

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// bridge carries what containerd's libraries log to the store's logger, one level down: their "info" is a step of ours.
type bridge struct{ to *slog.Logger }

func newBridge(to *slog.Logger) *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.InfoLevel)
	l.AddHook(bridge{to})
	return logrus.NewEntry(l)
}

// BridgeLibraries sends what libraries say that were given no logger (they use logrus' standard one) to another logger,
// one level down too. It is for a program's start: it changes the whole process.
func BridgeLibraries(to *slog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	logrus.AddHook(bridge{to})
}

// Levels are those of interest.
func (bridge) Levels() []logrus.Level { return logrus.AllLevels }

// Fire passes an entry on.
func (b bridge) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelWarn
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	if !b.to.Enabled(ctx, level) {
		return nil
	}
	var args []any
	for k, v := range e.Data {
		args = append(args, k, v)
	}
	b.to.Log(ctx, level, e.Message, args...)
	return nil
}
