"""Vectors and autoencoders that other tools wrote."""
