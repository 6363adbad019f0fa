"""Proof that a JAX Llama computes what PyTorch computes, tensor by tensor."""
