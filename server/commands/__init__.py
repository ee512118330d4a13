"""The subcommands of `twogear` that belong to the server; each is imported only when it is called."""
