"""What precedes a run or a capture: options, inputs and weights; PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.errors import InputError
from parity.scenarios import Prompt


def encoder(
    checkpoint: Checkpoint, prompt: Prompt | None
) -> tuple[Callable[[str], Sequence[int]], list[str]]:
    """Return what turns text into ids, and what the report must say about it."""
    if checkpoint.tokenizer_loader is not None:
        return checkpoint.tokenizer().encode, []
    if isinstance(prompt, str):
        raise InputError(
            f"{checkpoint.label}: has no tokenizer for the prompt; give token ids (--tokens)"
        )
    vocab = checkpoint.config.vocab_size
    note = "the checkpoint has no tokenizer: token ids are the bytes of the text"
    return (lambda text: [byte % vocab for byte in text.encode()]), [note]


def special_ids(checkpoint: Checkpoint) -> list[int]:
    """Return the ids of the tokenizer's special tokens; none where there is no tokenizer."""
    if checkpoint.tokenizer_loader is None:
        return []
    return sorted(checkpoint.tokenizer().special_tokens.values())


def token_texts(checkpoint: Checkpoint, tokens: np.ndarray) -> list[list[str]]:
    """Return what each token of a batch [B T] reads as, alone."""
    if checkpoint.tokenizer_loader is None:
        spelled = {int(i): chr(i) if i < 128 else f"<{i}>" for i in np.unique(tokens)}
    else:
        tokenizer = checkpoint.tokenizer()
        spelled = {int(i): tokenizer.decode([int(i)]) for i in np.unique(tokens)}
    return [[spelled[int(i)] for i in row] for row in tokens]
