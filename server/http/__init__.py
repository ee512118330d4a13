"""HTTP itself: the app, the protocol, bodies read and events sent; the routes are `server.api`'s."""
