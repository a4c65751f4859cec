"""The page of a recipe's models."""
