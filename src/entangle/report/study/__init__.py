"""The page of one concept in one model or in two."""
