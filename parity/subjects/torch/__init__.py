"""What every subject in PyTorch uses."""
