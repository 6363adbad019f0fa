"""Open a checkpoint of any format by parity's own readers."""

from __future__ import annotations

from pathlib import Path

from jaxllama.errors import CheckpointError
from parity.sources.source import Source


def open_source(path: Path) -> Source:
    """Open a checkpoint that jaxllama has opened; no weight is read yet.

    Raises:
        CheckpointError: what jaxllama has read cannot be read by other means.
    """
    try:
        return _open(Path(path))
    except Exception as error:  # each library raises its own kinds
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        reason = (missing or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{path}: jaxllama reads it, but the reference's own reader does not: {reason}"
        ) from error


def _open(path: Path) -> Source:
    """Open what weights say the format is; each library is loaded for its own alone."""
    packed = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if (path / "arrays").is_dir():
        from parity.sources.orbax_directory import open_orbax

        return open_orbax(path)
    if any(path.glob("consolidated.*.pth")):
        from parity.sources.meta import open_meta

        return open_meta(path)
    if path.is_dir() and (any(path.glob("model*.safetensors*")) or not packed):
        from parity.sources.hf import open_hf

        return open_hf(path)
    from parity.sources.gguf_file import open_gguf

    return open_gguf(packed[0])
