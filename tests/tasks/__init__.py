"""Tests of the problem families."""
