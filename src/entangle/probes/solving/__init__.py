"""Solvers of every cell of a grid at once."""
