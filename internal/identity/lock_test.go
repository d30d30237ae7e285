package identity

import (
	"bytes"
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestLockedKeys(t *testing.T) {
	ca := newCA(t)
	n := newNodeOf(t, ca, "m1", Manager)
	data, key := NewDataKey(), NewUnlockKey()
	if err := errors.Join(n.SetDataKey(data), n.SetUnlockKey(key)); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(n.path())
	if err != nil || bytes.Contains(doc, []byte("BEGIN PRIVATE KEY")) || bytes.Contains(doc, []byte(dataBlock)) {
		t.Fatalf("keys are on disk in the clear: %v\n%s", err, doc)
	}
	for _, wrong := range []string{"", NewUnlockKey()} {
		if _, err := Load(n.dir, wrong, nil); !errors.Is(err, ErrLocked) {
			t.Errorf("loaded with %q: %v", wrong, err)
		}
	}
	again, err := Load(n.dir, " "+key+"\n", nil)
	if err != nil || !bytes.Equal(again.DataKey(), data) || again.Subject() != n.Subject() {
		t.Fatalf("unlocked: %v", err)
	}
	// A new certificate is locked as the old one was, and TLS reads it from memory.
	path, err := again.KeyPairFile()
	if err != nil {
		t.Fatal(err)
	}
	before, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		t.Fatal(err)
	}
	cert, private := issue(t, ca, n.Subject(), 0)
	if err := again.Install(cert, private, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	if after, err := tls.LoadX509KeyPair(path, path); err != nil || bytes.Equal(after.Certificate[0], before.Certificate[0]) {
		t.Errorf("the path shows the old certificate: %v", err)
	}
	if _, err := Load(n.dir, "", nil); !errors.Is(err, ErrLocked) {
		t.Errorf("after a renewal the keys are not locked: %v", err)
	}
	if err := again.SetUnlockKey(""); err != nil {
		t.Fatal(err)
	}
	if open, err := Load(n.dir, "", nil); err != nil || !bytes.Equal(open.DataKey(), data) {
		t.Errorf("without a lock: %v", err)
	}
}

func TestSealIsForOnePlace(t *testing.T) {
	key := NewDataKey()
	doc, err := Seal(key, []byte("x"), "here")
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := Open(key, doc, "here"); err != nil || string(plain) != "x" {
		t.Errorf("%q, %v", plain, err)
	}
	if _, err := Open(key, doc, "there"); err == nil {
		t.Error("opened in another place")
	}
	if _, err := Open(NewDataKey(), doc, "here"); err == nil {
		t.Error("opened with another key")
	}
}

func FuzzNodeFile(f *testing.F) {
	k := keys{private: []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), data: NewDataKey(), unlock: NewUnlockKey()}
	locked, err := k.file([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	if err != nil {
		f.Fatal(err)
	}
	unlock := k.unlock
	k.unlock = ""
	open, _ := k.file(nil)
	for _, doc := range [][]byte{locked, open, nil, []byte(strings.Repeat("-----BEGIN ", 3))} {
		f.Add(doc, unlock)
		f.Add(doc, "")
	}
	f.Fuzz(func(t *testing.T, doc []byte, unlock string) {
		_, k, err := parseFile(doc, unlock)
		if err == nil && k.unlock != "" && k.unlock != unlock {
			t.Errorf("unlocked with %q, says %q", unlock, k.unlock)
		}
	})
}
