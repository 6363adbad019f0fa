"""Chat templates, which are programs of strangers: run in a process of their own, within limits."""
