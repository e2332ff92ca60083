package timing

import (
	"context"
	"reflect"
	"testing"
	"testing/synctest"
	"time"
)

func TestStagesAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatch()
		ctx := With(t.Context(), w)
		for _, stage := range []string{"one", "one", "two"} {
			time.Sleep(1500 * time.Microsecond)
			End(With(ctx, nil), "not measured")
			End(ctx, stage)
		}
		want := []Stage{{"one", 3 * time.Millisecond}, {"two", 1500 * time.Microsecond}}
		if got := w.Stages(); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestNothingIsMeasured(t *testing.T) {
	End(context.Background(), "no watch")
	var w *Watch
	w.End("none")
	if got := w.Stages(); got != nil {
		t.Errorf("got %v", got)
	}
}
