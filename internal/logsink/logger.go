package logsink

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/s3syncd/s3syncd/internal/config"
)

// NewLogger returns a logger that writes to w, and the level that a reload
// changes.
func NewLogger(c config.Log, w io.Writer) (*zap.Logger, zap.AtomicLevel, error) {
	level, err := zap.ParseAtomicLevel(c.Level)
	if err != nil {
		return nil, zap.AtomicLevel{}, fmt.Errorf("log.level: %w", err)
	}
	enc := zap.NewProductionEncoderConfig()
	enc.TimeKey, enc.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	enc.EncodeDuration = zapcore.StringDurationEncoder
	var encoder zapcore.Encoder
	if c.Format == "console" {
		enc.EncodeLevel = zapcore.CapitalLevelEncoder
		enc.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		encoder = zapcore.NewConsoleEncoder(enc)
	} else {
		encoder = zapcore.NewJSONEncoder(enc)
	}
	log := zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level))
	if sink, ok := w.(*Sink); ok {
		sink.Tell(func(n int64) {
			log.Warn("the log could not be written: lines of it are lost, nothing else is", zap.Int64("lines", n))
		})
	}
	return log, level, nil
}

// Sampled returns a logger for lines that come once per file: the first hundred
// of a kind in each second are written, then every hundredth.
func Sampled(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Second, 100, 100)
	}))
}

// NewConsole returns a logger of warnings and errors for the operator at a
// terminal, or of what the configured level says when that is debug.
func NewConsole(c config.Log, w io.Writer) (*zap.Logger, error) {
	c.Format = "console"
	if c.Level == "info" {
		c.Level = "warn"
	}
	log, _, err := NewLogger(c, w)
	return log, err
}
