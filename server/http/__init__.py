"""HTTP itself: the protocol, bodies read and events sent; the routes are `server.api`'s."""
