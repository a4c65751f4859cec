"""ReLU autoencoders that put many features into few dimensions."""
