"""How sure a number is: intervals of rates, of areas under a curve, of ratios, and of means of rows in order."""
