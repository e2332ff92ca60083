package forward_test

import "testing"

// TestConformance holds every way to the same promises.
func TestConformance(t *testing.T) {
	for _, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			p := path{newSite(t), way}
			for _, promise := range []struct {
				name string
				test func(*testing.T, path)
			}{
				{"echo", testEcho},
				{"much data", testMuchData},
				{"half-close", testHalfClose},
				{"connections at once", testConnectionsAtOnce},
				{"short connections", testShortConnections},
				{"slow reader", testSlowReader},
				{"slow writer", testSlowWriter},
				{"backpressure", testBackpressure},
				{"idle", testIdle},
				{"client gone", testClientGone},
				{"server gone", testServerGone},
				{"server late", testServerLate},
				{"resets", testResets},
				{"datagrams", testDatagrams},
				{"bursts of datagrams", testBursts},
				{"many clients' datagrams", testManyClientsDatagrams},
				{"datagrams' server late", testDatagramServerLate},
				{"websocket", testWebSocket},
				{"server-sent events", testServerSentEvents},
			} {
				t.Run(promise.name, func(t *testing.T) { promise.test(t, p) })
			}
		})
	}
}
