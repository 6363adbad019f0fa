"""Faults as edits of the reference's programs: what can be edited, how, and which edits explain."""
