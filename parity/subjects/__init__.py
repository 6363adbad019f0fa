"""The implementations under comparison: one file each, all with the interface of `base`."""
