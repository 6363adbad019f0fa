"""What a result looks like: on a terminal, as JSON, and as files other tools read."""
