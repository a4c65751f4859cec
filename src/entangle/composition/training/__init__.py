"""Training of models, on streams of text and on pairs."""
