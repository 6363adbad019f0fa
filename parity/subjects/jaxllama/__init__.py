"""This project's model."""
