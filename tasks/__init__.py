"""The problem families: what is asked, held out or to train on, and what an answer is worth. Knows no model."""
