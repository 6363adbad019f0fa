"""Checkpoints with fewer or more key and value heads: MHA made GQA or MQA, and back."""

from jaxllama.checkpoint.kv_heads.regroup import with_kv_heads

__all__ = ["with_kv_heads"]
