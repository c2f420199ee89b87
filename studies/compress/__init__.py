"""Alternatives to early exits: pruning, quantisation, smaller inputs, architecture search."""
