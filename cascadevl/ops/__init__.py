"""Functions on tensors: the arithmetic that models, engine and training share."""
