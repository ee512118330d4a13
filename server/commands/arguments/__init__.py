"""The flags of `twogear serve`, one file for each group of its help."""
