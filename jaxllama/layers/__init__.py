"""What a decoder layer is built of: products with weights, norms, the table of embeddings."""

from jaxllama.layers.embedding import Embedding
from jaxllama.layers.linear import FusedLinear, Linear
from jaxllama.layers.norm import RMSNorm

__all__ = ["Embedding", "FusedLinear", "Linear", "RMSNorm"]
