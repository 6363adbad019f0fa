"""`parity quality`: how well a model foretells and writes texts, before and after a change."""
