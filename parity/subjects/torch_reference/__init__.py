"""Our own PyTorch Llama: the float64 reference, and, narrow, the measure of noise."""
