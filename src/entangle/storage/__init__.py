"""A directory written whole, with kind, version and whose it is."""
