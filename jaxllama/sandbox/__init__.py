"""Programs of strangers - chat templates, regular expressions - in a process of limited means."""
