"""Accuracy of a running server, through its HTTP interface alone."""
