"""One concept in one model, end to end."""
