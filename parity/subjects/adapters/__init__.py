"""Models not written here, in PyTorch or Flax, made into subjects by what they show."""
