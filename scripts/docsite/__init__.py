"""The documentation site: pages laid out, made and checked for `scripts/build_docs.py`."""
