"""Other machines, imitated on this one: honest PyTorch whose operators are computed another way."""
