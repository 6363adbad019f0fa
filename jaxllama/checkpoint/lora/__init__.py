"""LoRA adapters as PEFT saves them: read, merged into the weights they were trained on, written."""

from jaxllama.checkpoint.lora.adapter import Adapter, open_adapter, scale_of
from jaxllama.checkpoint.lora.merge import merge_lora
from jaxllama.checkpoint.lora.write import save_lora

__all__ = ["Adapter", "merge_lora", "open_adapter", "save_lora", "scale_of"]
