"""Meta's consolidated.NN.pth: files of PyTorch's.

The only module that imports PyTorch, and inside the functions that need it. Files are read with
`weights_only`, which refuses code, and mapped instead of loaded; they are written by planning the
file without its tensors, which are then put in their places like those of any other format.
"""

from __future__ import annotations

import pickle
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.dtypes import BFLOAT16
from jaxllama.checkpoint.layout import byte_size
from jaxllama.checkpoint.meta.zip_file import add_checksums, has_checksums, read_records
from jaxllama.errors import CheckpointError, join_problems

if TYPE_CHECKING:
    import torch

# Mapped pages count as this process's memory until the map is dropped.
_MAPPED_LIMIT = 256 << 20


class Shard:
    """One file, mapped only while it is read."""

    def __init__(self, file: Path):
        self.file = file
        self._mapped: dict[str, torch.Tensor] | None = None
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._touched = 0
        files.refuse_stranger(file, own=b"PK")
        records = read_records(file)
        self._records = {record.offset: record for record in records}
        self._has_checksums = has_checksums(records)
        self._compared: set[int] = set()
        self.shapes = {
            name: (tuple(tensor.shape), _numpy_dtype(tensor, f"{file}: {name}"))
            for name, tensor in self._tensors().items()
        }
        self._mapped, self._storages = None, {}
        self._placed = self._places()
        self._stored: dict[str, str] = {}

    def rename(self, plain: Mapping[str, str]) -> None:
        """Call every tensor by its plain name from here on, given by stored name."""
        self._stored = {inner: name for name, inner in plain.items()}
        self.shapes = {inner: self.shapes[name] for inner, name in self._stored.items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        import torch

        if self._mapped is None:
            try:
                found = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
            except pickle.UnpicklingError as error:
                refused = str(error).split(":")[0].splitlines()[0]
                raise CheckpointError(
                    f"{self.file}: holds more than tensors and is not read, since unpickling it "
                    f"could run code ({refused})"
                ) from None
            except Exception as error:  # PyTorch raises many kinds on a damaged file
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                raise CheckpointError(f"{self.file}: damaged: {reason}") from None
            self._mapped = _checked_state(found, self.file)
            # As they lie in the file: what is negated when it is read is a copy.
            self._storages = {name: found[name].untyped_storage() for name in self._mapped}
            self._touched = 0
        return self._mapped

    def _places(self) -> dict[str, int]:
        """Return where in the file each tensor's record begins."""
        import torch

        try:
            found = torch.load(self.file, map_location="meta", weights_only=True)
            storages = {name: found[name].untyped_storage() for name in self.shapes}
            places = {name: int(one._checkpoint_offset) for name, one in storages.items()}
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(f"{self.file}: damaged: {reason}") from None
        problems = [
            f"{name} needs {one.nbytes()} bytes of a record of {record.nbytes if record else 0}"
            for name, one in storages.items()
            if (record := self._records.get(places[name])) is None or record.nbytes != one.nbytes()
        ]
        if problems:
            raise CheckpointError(join_problems(f"{self.file}: damaged", problems))
        return places

    def read(self, name: str, *, compared: bool = True) -> np.ndarray:
        """Return a view of one mapped tensor, valid until the next call.

        Args:
            name: of the tensor.
            compared: whether its bytes are compared with their checksum, once.

        Raises:
            CheckpointError: they are not as their checksum says.
        """
        if self._touched > _MAPPED_LIMIT:
            self._mapped, self._storages = None, {}
        stored = self._stored.get(name, name)
        tensor = self._tensors()[stored]
        self._touched += tensor.numel() * tensor.element_size()
        import torch

        if compared:
            self._compare(stored)
        try:
            if tensor.dtype == torch.bfloat16:
                return tensor.view(torch.uint16).numpy().view(BFLOAT16)
            return tensor.numpy()
        except (TypeError, RuntimeError) as error:  # of a dtype that NumPy lacks
            raise CheckpointError(
                f"{self.file}: {name}: dtype {tensor.dtype} cannot be read: {error}"
            ) from None

    def _compare(self, name: str) -> None:
        """Compare the record that a tensor lies in with its checksum, if that is not done yet."""
        import torch

        record = self._records[self._placed[name]]
        if not self._has_checksums or record.offset in self._compared:
            return
        storage = self._storages[name]
        found = zlib.crc32(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
        if found != record.checksum:
            raise CheckpointError(
                f"{self.file}: {name}: damaged: checksum {found:08x} of its bytes, the file states "
                f"{record.checksum:08x}; fetch it again"
            )
        self._compared.add(record.offset)


def _checked_state(found: Any, file: Path) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds a {type(found).__name__}, expected a dict of tensors")
    files.check_names([str(name) for name in found], str(file))
    problems, state = [], {}
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            problems.append(
                f"{str(name)[:80]!r} is a {type(tensor).__name__}, expected a tensor"
                + ("; save that dict alone" if isinstance(tensor, dict) else "")
            )
            continue
        if (values := _plain(tensor)) is None:
            problems.append(f"{name} is not a plain contiguous tensor")
            continue
        files.check_shape(values.shape, f"{file}: {name}")
        state[name] = values
    if problems:
        raise CheckpointError(join_problems(f"{file}: not read", problems))
    return state


def _plain(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor of values alone, None where it is of a kind that has none in a row.

    Of a parameter they are what is left; what is marked as negated or conjugate is made so.
    """
    import torch

    strange = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested
    try:
        if strange or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
        return tensor.detach().resolve_conj().resolve_neg()
    except (RuntimeError, TypeError):  # of kinds that come with releases
        return None


def _numpy_dtype(tensor: torch.Tensor, what: str) -> np.dtype:
    import torch

    if tensor.dtype == torch.bfloat16:
        return BFLOAT16
    try:
        return np.dtype(str(tensor.dtype).removeprefix("torch."))
    except TypeError:
        raise CheckpointError(f"{what}: dtype {tensor.dtype} is not supported") from None


@dataclass(frozen=True)
class PlannedFile:
    """A file of PyTorch's without its tensors.

    Attributes:
        frame: what it holds besides tensors, as (offset, bytes).
        offsets: where each tensor begins.
        checksums: where each tensor's CRC-32 goes.
        length: of the file in bytes.
    """

    frame: list[tuple[int, bytes]]
    offsets: dict[str, int]
    checksums: dict[str, tuple[int, int]]
    length: int


def plan_file(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> PlannedFile:
    """Plan a file of PyTorch's without holding its tensors.

    Args:
        tensors: shape and dtype by name.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with tempfile.TemporaryDirectory(prefix="jaxllama-") as work:
        file = Path(work) / "skeleton.pth"
        checksums = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # of tensors that are not there yet
        try:
            with FakeTensorMode():
                empty = {
                    name: torch.empty(shape, dtype=getattr(torch, dtype.name))
                    for name, (shape, dtype) in tensors.items()
                }
                with torch.serialization.skip_data(materialize_fake_tensors=True):
                    torch.save(empty, file)
                placed = torch.load(file, weights_only=True)
        finally:
            torch.serialization.set_crc32_options(checksums)
        offsets = {name: t.untyped_storage()._checkpoint_offset for name, t in placed.items()}
        stated_at = {record.offset: record.stated_at for record in add_checksums(file)}
        length = file.stat().st_size
        frame, at = [], 0
        with file.open("rb") as skeleton:
            for name in sorted(offsets, key=lambda name: offsets[name]):
                skeleton.seek(at)
                frame.append((at, skeleton.read(offsets[name] - at)))
                at = offsets[name] + byte_size(*tensors[name])
            skeleton.seek(at)
            frame.append((at, skeleton.read()))
    places = {name: stated_at[offset] for name, offset in offsets.items()}
    return PlannedFile(frame, offsets, places, length)
