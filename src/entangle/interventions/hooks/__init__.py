"""Edits of a running model by hooks: where, and on which tokens."""
