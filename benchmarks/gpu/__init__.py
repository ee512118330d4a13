"""Twogear on a GPU machine that has little: what to bring (`pack.py`) and what to run there (`check.py`)."""
