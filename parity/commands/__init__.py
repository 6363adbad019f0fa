"""One file a verb of the `parity` command, or for those that go together."""
