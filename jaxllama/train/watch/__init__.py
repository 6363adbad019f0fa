"""What warns of a training that goes wrong, and says where."""

from jaxllama.train.watch.locate import locate_nonfinite
from jaxllama.train.watch.monitor import HealthMonitor, HealthWarning

__all__ = ["HealthMonitor", "HealthWarning", "locate_nonfinite"]
