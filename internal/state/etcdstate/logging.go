package etcdstate

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZapLogger gives etcd a logger that writes to ours. etcd is talkative, and calls errors what is in order here (a
// learner that needs another moment, a member that was removed): all that it survives is for debugging. What it dies of
// is an error.
func newZapLogger(l *slog.Logger) *zap.Logger {
	return zap.New(zapToSlog{l.With("part", "etcd")})
}

type zapToSlog struct{ logger *slog.Logger }

func slogLevel(l zapcore.Level) slog.Level {
	if l <= zapcore.ErrorLevel {
		return slog.LevelDebug
	}
	return slog.LevelError
}

func (z zapToSlog) Enabled(l zapcore.Level) bool {
	return z.logger.Enabled(context.Background(), slogLevel(l))
}

func (z zapToSlog) With(fields []zapcore.Field) zapcore.Core {
	return zapToSlog{z.logger.With(attrs(fields)...)}
}

func (z zapToSlog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if z.Enabled(e.Level) {
		return ce.AddCore(e, z)
	}
	return ce
}

func (z zapToSlog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	z.logger.Log(context.Background(), slogLevel(e.Level), e.Message, attrs(fields)...)
	return nil
}

func (z zapToSlog) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, f.Key, v)
		}
	}
	return out
}
