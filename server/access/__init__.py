"""Who may use the server: API keys and their limits, origins of web pages, hosts."""
