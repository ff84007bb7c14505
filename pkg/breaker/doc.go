// Package breaker is the circuit breaker of a destination: it decides whether
// requests may be sent there and how many at once, and finds out when it works
// again.
//
// A Breaker is in one of six states. Only closed lets files start; the others
// hold them back, and each is left by a probe that passes:
//
//	state      entered when                            probe    Health
//	closed     a probe passes                          canary   ok
//	unproven   the process starts                      canary   waiting
//	open       five requests in a row have no answer   ping     waiting
//	suspected  a file is refused                       canary   parked
//	parked     the canary is refused                   canary   parked
//	stopped    an answer does not confirm the KMS key  canary   stopped
//
//	             ┌──────────┐ passes
//	   start ───►│ unproven ├────────────────┐
//	             └────┬─────┘                ▼
//	                  │       no answer ┌────────┐ file refused
//	                  │          ┌──────┤ closed ├──────┐
//	                  │          ▼      └─┬──▲───┘      ▼
//	                  │       ┌──────┐    │  │    ┌───────────┐
//	                  │       │ open ├────┼──┼───►│ suspected │
//	                  │       └──────┘    │  │    └─────┬─────┘
//	                  │           canary  │  │ passes   │ canary
//	                  │           refused ▼  │          │ refused
//	                  │ refused         ┌────┴───┐      │
//	                  └────────────────►│ parked │◄─────┘
//	                                    └────────┘
//	   any state ── the key is not confirmed ──► stopped ── canary passes ──► closed
//
// The ping of open is any cheap request, and any answer closes the breaker. The
// canary is an object of its own that is written under the KMS key and checked.
// While the breaker is closed it runs once per day.
//
// A run that ends by itself (Options.GiveUp) gives up a destination that it
// cannot use: its files then fail instead of waiting.
package breaker
