"""The models of a recipe beside one another: intervals over seeds, claims, attacks."""
