"""Edits as plain weights, as modules that models carry, and as other tools' files."""
