// Package loopback knows which hosts are this machine. Code that decides by that,
// in a check or at a connection, decides by the same function.
package loopback

import (
	"context"
	"net"
	"net/netip"
	"strings"
)

// Host reports whether host, a name or an address, can only be this machine.
// RFC 6761 reserves localhost and every name below it.
func Host(host string) bool {
	if name(host) {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Address reports whether address, host and port or a host alone, can only be
// this machine.
func Address(address string) bool {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return Host(host)
	}
	return Host(strings.Trim(address, "[]"))
}

func name(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// Dial is how one connects to an address.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer returns a Dial that does not ask a name server for names below
// localhost: its answer could be another machine.
func Dialer(next Dial) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, port, err := net.SplitHostPort(address); err == nil && name(host) {
			address = net.JoinHostPort("localhost", port)
		}
		return next(ctx, network, address)
	}
}
