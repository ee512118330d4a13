"""The tables of docs/api/ and of some other pages: `python -m server.commands.reference` renews them."""
