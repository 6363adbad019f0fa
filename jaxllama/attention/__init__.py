"""Grouped-query attention under an explicit mask, on several backends; see `attend`."""

from jaxllama.attention.backends import Backend, attend, check_backend, fastest_backend, knows_rules

__all__ = ["Backend", "attend", "check_backend", "fastest_backend", "knows_rules"]
