"""Transformers that learn Markov chains: the paper's toy experiment."""
