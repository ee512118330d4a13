"""What a mode is and how a request picks one: profiles, the peers' dialects, token limits."""
