"""Notebooks 05d and 06: policies beside their bounds, what a router can foresee, and AP in parts."""
