"""What both commands stand on: one line for an error, exit codes, Ctrl-C, closed pipes."""
