"""How fast servers are, side by side: loads, the client that applies them, what is measured and how it is reported."""
