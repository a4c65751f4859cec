"""Activations on disk: shards that are written whole, and the store that names them."""
