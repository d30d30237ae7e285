package server

import (
	"testing"
	"testing/synctest"
	"time"
)

// A search for strays waits for what is being started and keeps new starts waiting, but not for one that never comes to its end.
func TestSearchAndStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var st starts
		st.begin()
		found := make(chan struct{})
		go st.alone(func() { close(found) })
		synctest.Wait()
		began := time.Now()
		st.begin()
		if waited := time.Since(began); waited != patience {
			t.Errorf("a start waited for %v beside one that is held up, want %v", waited, patience)
		}
		st.done()
		st.done()
		<-found
		st.begin()
		st.done()

		held := make(chan struct{})
		go st.alone(func() { <-held })
		synctest.Wait()
		began = time.Now()
		time.AfterFunc(time.Hour, func() { close(held) })
		st.begin()
		if waited := time.Since(began); waited != time.Hour {
			t.Errorf("a start waited for %v, want until the search is over", waited)
		}
		st.done()
	})
}
