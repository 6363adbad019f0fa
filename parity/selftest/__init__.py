"""The checker, checked: faults injected into the JAX side, and how many of them it finds."""
