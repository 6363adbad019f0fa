"""JSON Schemas of the documents that `parity` and `jaxllama` write, one version a kind.

`parity schema` prints them; `docs/schema` holds them.
"""
