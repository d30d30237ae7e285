//go:build cgo

package enter

import (
	"strings"
	"testing"

	"github.com/moby/sys/user"
)

// FuzzHome compares with what libcontainer's init finds.
func FuzzHome(f *testing.F) {
	for _, text := range []string{
		"", "root:x:0:0:root:/root:/bin/sh\n", "\n \n\troot:x:0:0:root:/root \t\n", "odd", "a:b", "::::::::", "a:x:7:7::", "a:x:+7:7::/seven",
		"a:x: 7:7::/no\nb:x:7 :7::/no\nc:x:-7:7::/no\nd:x:99999999999999999999:7::/no\ne:x:0x7:7::/no\nf:x:7:7::/seven:/bin/sh:more",
	} {
		f.Add(text, uint32(0))
		f.Add(text, uint32(7))
	}
	f.Fuzz(func(t *testing.T, text string, uid uint32) {
		if strings.ContainsAny(text, "\x00\r\v\f\u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000") || strings.ContainsRune(text, '\xc2') || len(text) > 60000 {
			return // left to libcontainer, or longer than a line that it reads
		}
		for r := '\u2000'; r <= '\u200a'; r++ {
			if strings.ContainsRune(text, r) {
				return
			}
		}
		want := "/"
		entries, err := user.ParsePasswdFilter(strings.NewReader(text), func(u user.User) bool { return u.Uid == int(uid) })
		if err != nil {
			return
		}
		if len(entries) > 0 {
			want = entries[0].Home
		}
		if got := homeOf(text, uid); got != want {
			t.Errorf("the folder of %d is %q, want %q, by %q", uid, got, want, text)
		}
	})
}
