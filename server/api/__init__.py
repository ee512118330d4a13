"""One folder for each HTTP API: the body, how it becomes a request of the core, the response, the routes."""
