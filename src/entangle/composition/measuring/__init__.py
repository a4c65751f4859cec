"""What is measured of each trained model."""
