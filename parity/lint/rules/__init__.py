"""One file a rule: its texts, its check, a mutant that fires it and a twin that does not."""
