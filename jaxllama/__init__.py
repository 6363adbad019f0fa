"""Llama 3 in Flax NNX, with numerics that come from the checkpoint and nothing else."""
