"""Serving: what a process does that has functions."""
