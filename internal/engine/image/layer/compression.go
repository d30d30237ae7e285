package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compression is how an archive is compressed.
type Compression string

// The compressions that are known by their first bytes.
const (
	Plain Compression = "plain"
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
	Bzip2 Compression = "bzip2"
	XZ    Compression = "xz"
)

// maxWindow bounds the memory that a compressed archive can ask for.
const maxWindow = 128 << 20

// readSize is how much of a compressed stream is read at once.
const readSize = 128 << 10

// Detect tells the compression of an archive by its first bytes, six at least.
func Detect(head []byte) Compression {
	for _, c := range []struct {
		compression Compression
		magic       []byte
	}{
		{Gzip, []byte{0x1f, 0x8b, 0x08}},
		{Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd}},
		{Bzip2, []byte("BZh")},
		{XZ, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
	} {
		if bytes.HasPrefix(head, c.magic) {
			return c.compression
		}
	}
	// A frame to be skipped, with which zstd archives that can be sought in begin: 0x184D2A50 to …5F.
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}) {
		return Zstd
	}
	return Plain
}

// Decompress returns what is in a stream that may be compressed, and how it is. Close frees the decompressor, not r.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	in := bufio.NewReaderSize(r, readSize)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, Plain, err
	}
	c := Detect(head)
	out := io.Reader(in)
	switch c {
	case Gzip:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, c, fmt.Errorf("gzip: %w", err)
		}
		return z, c, nil
	case Zstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, c, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), c, nil
	case Bzip2:
		out = bzip2.NewReader(in)
	case XZ:
		if out, err = (xz.ReaderConfig{DictCap: maxWindow}).NewReader(in); err != nil {
			return nil, c, fmt.Errorf("xz: %w", err)
		}
	}
	return io.NopCloser(out), c, nil
}

// pipeChunk and pipeDepth are how far a pipe reads ahead, in bytes and in chunks.
const (
	pipeChunk = 256 << 10
	pipeDepth = 8
)

// Pipe reads a stream ahead of who takes it, and sums it up on the way: decompression, digest and extraction then run
// side by side. Read returns the stream's own error at its end.
type Pipe struct {
	out  chan chunk
	free chan []byte
	now  chunk
	left []byte
	done chan struct{}
	once sync.Once
	wait sync.WaitGroup
}

type chunk struct {
	buf []byte // the whole of it, to be used again
	n   int
	err error
}

// NewPipe begins to read r. What is read is written to sum, which the caller may look at once Read has returned an error.
func NewPipe(r io.Reader, sum hash.Hash) *Pipe {
	p := &Pipe{out: make(chan chunk, pipeDepth), free: make(chan []byte, 2*pipeDepth), done: make(chan struct{})}
	read := make(chan chunk, pipeDepth)
	for range 2 * pipeDepth {
		p.free <- nil // made when it is first needed
	}
	p.wait.Go(func() {
		defer close(read)
		for {
			var c chunk
			select {
			case c.buf = <-p.free:
			case <-p.done:
				return
			}
			if c.buf == nil {
				c.buf = make([]byte, pipeChunk)
			}
			for c.n < len(c.buf) && c.err == nil {
				var n int
				n, c.err = r.Read(c.buf[c.n:])
				c.n += n
			}
			select {
			case read <- c:
			case <-p.done:
				return
			}
			if c.err != nil {
				return
			}
		}
	})
	p.wait.Go(func() {
		defer close(p.out)
		for c := range read {
			if sum != nil {
				sum.Write(c.buf[:c.n])
			}
			select {
			case p.out <- c:
			case <-p.done:
				return
			}
		}
	})
	return p
}

// Read implements io.Reader.
func (p *Pipe) Read(b []byte) (int, error) {
	for len(p.left) == 0 {
		if p.now.err != nil {
			return 0, p.now.err
		}
		if p.now.buf != nil {
			p.free <- p.now.buf // there is room: it came from there
		}
		c, ok := <-p.out
		if !ok {
			c = chunk{err: io.ErrClosedPipe}
		}
		p.now, p.left = c, c.buf[:c.n]
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

// Close ends the reading ahead and waits until nobody reads from the stream any more. A Read of the stream that blocks
// is waited for.
func (p *Pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	p.wait.Wait()
	return nil
}
