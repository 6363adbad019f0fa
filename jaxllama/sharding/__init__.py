"""One model on many devices: named mesh axes, and rules for what lies along them."""

from jaxllama.sharding.activations import placed
from jaxllama.sharding.layout import MeshLike, ModelSharding, model_sharding
from jaxllama.sharding.mesh import AXES, make_mesh, parse_mesh
from jaxllama.sharding.parameters import gathered

__all__ = [
    "AXES",
    "MeshLike",
    "ModelSharding",
    "gathered",
    "make_mesh",
    "model_sharding",
    "parse_mesh",
    "placed",
]
