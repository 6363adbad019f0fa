"""What `parity.run` and its siblings do, from a checkpoint to a `Result`."""
