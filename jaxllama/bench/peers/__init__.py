"""What is timed, a file a framework. Each is imported in a process of its own alone."""
