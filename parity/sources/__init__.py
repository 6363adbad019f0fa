"""Checkpoints read a second time, by other means than jaxllama's: what judges runs on these.

Nothing here runs `jaxllama.checkpoint` or `jaxllama.config_formats`: names, layouts and rules are
written down once more, and the files are read by safetensors, `gguf`, PyTorch and TensorStore. The
formats are taken to be sound: jaxllama has opened the same file before, and refuses what is not.
"""
