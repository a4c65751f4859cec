"""What may be given to `collect`, made into rows of tokens."""
