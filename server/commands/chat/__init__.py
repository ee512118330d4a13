"""`twogear chat`: a conversation with a running server in the terminal, through its HTTP API as any other client."""
