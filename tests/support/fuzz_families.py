"""What `make fuzz` spoils: readers by their files, each with what is done to these and how it ends.

A family prepares sound files once and returns what spoils them and reads them, which says how that
ended: `refused`, `same`, `noted` (another model, and a note), `manifest` (found by it), `accepted`
(what another sound file could say), `data` (values changed, and no manifest to tell). Anything
else, and any exception that is not the project's, is wrong.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import checkpoint_fuzz
import field_files as ff
import field_fuzz
import hostile_templates
import numpy as np
import token_files
from adapters import write_adapter
from spoilt_trees import VALUES, spoilt

from jaxllama.errors import JaxLlamaError

# Tries one change, which the generator chooses, in an empty directory.
Try = Callable[[Path, int, random.Random], str]
_LONGEST = 6000


@dataclass(frozen=True)
class Family:
    """One kind of file.

    Attributes:
        tries: in a whole run.
        prepare: writes what is sound to a directory, and returns what is tried.
    """

    tries: int
    prepare: Callable[[Path], Try]


def ended(read: Callable[[], str]) -> str:
    """Return how a reading ended: what it says itself, or `refused` by a short error."""
    try:
        return read()
    except JaxLlamaError as error:
        return "refused" if len(str(error)) <= _LONGEST else f"flood: {str(error)[:200]}"


def _damage(form: str, work: Path) -> Try:
    """Bytes and structures, by tests/support/checkpoint_fuzz.py."""
    original, whole = checkpoint_fuzz.write_whole(work, form)

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        kinds = checkpoint_fuzz.DAMAGE[form]
        root = Path(shutil.copytree(whole, place / form))
        kinds[number % len(kinds)](root, rng)
        before = set(place.rglob("*"))
        found = checkpoint_fuzz.outcome(original, root)
        after = {p for p in place.rglob("*") if "converted" not in p.parts}
        if after != before or (place / "ran").exists():
            return f"wrote: {sorted(map(str, after ^ before))}"
        return found

    return spoil_and_read


def _fields(form: str, work: Path) -> Try:
    """Fields, names and files, by tests/support/field_fuzz.py."""
    whole = field_fuzz.write_whole(work, form)
    sound = field_fuzz.read(whole)

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        at = place / ("spoilt.gguf" if form == "gguf" else "spoilt")
        (shutil.copy if form == "gguf" else shutil.copytree)(whole, at)
        mutations = field_fuzz.MUTATIONS[form]
        mutations[number % len(mutations)](at, form, rng)
        return field_fuzz.outcome(sound, at)

    return spoil_and_read


def _data(with_manifest: bool, work: Path) -> Try:
    """Single bits of tensors, which no file of a stranger's tells from others."""
    from jaxllama.checkpoint import check_manifest, convert, open_checkpoint, validate
    from jaxllama.checkpoint.hf.safetensors_file import read_header

    whole = convert(ff.sound(), work / "whole", to="hf").target
    slots = list(read_header(whole / ff.WEIGHTS).values())

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        root, slot = Path(shutil.copytree(whole, place / "spoilt")), rng.choice(slots)
        data = bytearray((root / ff.WEIGHTS).read_bytes())
        data[slot.offset + rng.randrange(slot.nbytes)] ^= 1 << rng.randrange(8)
        (root / ff.WEIGHTS).write_bytes(data)

        def read() -> str:
            checkpoint = open_checkpoint(root)
            validate(checkpoint)
            if not with_manifest:
                return "data"
            try:
                check_manifest(checkpoint)
            except JaxLlamaError:
                return "manifest"
            return "silent: a bit"

        return ended(read)

    return spoil_and_read


def _templates(work: Path) -> Try:
    from jaxllama.tokenizer import Tokenizer

    talks = [[{"role": "user", "content": "<|turn|> hi"}], [{"role": "system", "content": []}]]

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        made = hostile_templates.template(rng, endless=number % 100 == 99)
        alone = isinstance(made, str) and rng.random() < 0.3 and "\ud800" not in made
        settings = token_files.tokenizer_config(chat_template=None if alone else made)
        token_files.write_tokenizer(place, tokenizer_config_json=json.dumps(settings))
        if alone:
            (place / "chat_template.jinja").write_bytes(made.encode())

        def read() -> str:
            tokenizer = Tokenizer.from_directory(place)
            return _worst([ended(partial(_chat, tokenizer, talk)) for talk in talks])

        found = ended(read)
        return "wrote: a file" if Path("ran").exists() else found

    return spoil_and_read


def _worst(ends: list[str]) -> str:
    return next((end for end in ends if end not in ("accepted", "refused")), min(ends))


def _chat(tokenizer: Any, talk: list[dict[str, Any]]) -> str:
    tokenizer.render_chat(talk)
    tokenizer.encode_chat(talk)
    tokenizer.encode_chat(talk, specials=True, tools=[{"name": "f"}])
    return "accepted"


def _tokenizers(work: Path) -> Try:
    from jaxllama.checkpoint import in_memory
    from jaxllama.checkpoint.gguf.tokenizer import tokenizer_metadata
    from jaxllama.tokenizer import Tokenizer, write_model_file

    base = ff.sound()
    weights = {name: base.read(name) for name in base.tensors}
    rules = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "x"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "y"},
                {"type": "NFC"},
            ],
        },
        "truncation": {
            "direction": "Right",
            "max_length": 9,
            "strategy": "LongestFirst",
            "stride": 1,
        },
    }
    sound: Mapping[str, Any] = {
        "tokenizer.json": [token_files.tokenizer_json(), token_files.tokenizer_json(**rules)],
        "tokenizer_config.json": [
            token_files.tokenizer_config(),
            token_files.tokenizer_config(
                added_tokens_decoder={"256": {"content": "<s>", "special": True}},
                extra_special_tokens=["<x>"],
            ),
        ],
        "special_tokens_map.json": [{"eos_token": "<|turn|>", "pad_token": {"content": "<pad>"}}],
        "added_tokens.json": [{"<y>": 262}],
        "generation_config.json": [{"eos_token_id": [257, 259], "bos_token_id": 256}],
        "config.json": [{"eos_token_id": 257, "pad_token_id": None}],
    }

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        contents = {name: rng.choice(kinds) for name, kinds in sound.items()}
        for name in list(contents)[2:]:
            if rng.random() < 0.5:
                del contents[name]
        name = rng.choice([*contents, "tokenizer.json"])
        contents[name] = spoilt(contents[name], rng)
        found = {n: json.dumps(c).encode() for n, c in contents.items()}
        if rng.random() < 0.25:
            del found["tokenizer.json"]
            found["tokenizer.model"] = _spoilt_lines(token_files.meta_tokenizer_model(), rng)

        def read() -> str:
            tokenizer = Tokenizer.from_files(found, source="spoilt", config=base.config)
            for text in ("Hello, world! " * 9, "<|turn|> é 東京 \0", ""):
                tokenizer.decode(tokenizer.encode(text))
                tokenizer.encode(text, specials=False)
            if tokenizer.has_chat:
                _chat(tokenizer, [{"role": "user", "content": "<|turn|> hi"}])
            return "accepted"

        ends = [ended(read)]
        if "tokenizer.json" in found:
            content = found["tokenizer.json"]
            ends.append(ended(lambda: str(write_model_file(content, 512))[:0] + "accepted"))
            carried = in_memory(base.config, weights, companions=found)
            ends.append(ended(lambda: str(tokenizer_metadata(carried))[:0] + "accepted"))
        return _worst(ends)

    return spoil_and_read


def _spoilt_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.append(lines[at])
    elif kind == 2:
        lines[at] = (
            lines[at].split()[0] + b" " + rng.choice([b"-1", b"x", b"9" * 5000, b"2.5", b""])
        )
    elif kind == 3:
        lines[at] = rng.choice([b"\xff\xfe", b"=== 1", b"QQ== 1 2", b"", b"\0"])
    elif kind == 4:
        lines = lines[:at]
    else:
        lines[at] = b"eHh4 " + lines[at].split()[1]
    return b"\n".join(lines)


def _adapters(work: Path) -> Try:
    from jaxllama.checkpoint.checks import all_value_problems
    from jaxllama.checkpoint.lora import merge_lora

    base = ff.sound()
    modules = [
        f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "o_proj")
    ]
    patterns = {"rank_pattern": {"k_proj": 3}, "alpha_pattern": {".*o_proj": 5}}
    write_adapter(work / "adapter", base, modules, **patterns)
    whole = work / "adapter"
    extra = {"modules_to_save": ["norm"], "exclude_modules": "x.*", "layers_to_transform": [0, 1]}

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        root = Path(shutil.copytree(whole, place / "adapter"))
        file = root / "adapter_config.json"
        if rng.random() < 0.65:
            content = json.loads(file.read_text()) | rng.choice([{}, extra])
            content = spoilt(content, rng)
            if isinstance(content, dict) and rng.random() < 0.3:
                field = rng.choice(["target_modules", "exclude_modules", "rank_pattern"])
                hostile = rng.choice(
                    ["(.*a|.*)*$", "(((((a?){99}){99}){99}){99})x", "(", "(" * 500]
                )
                content[field] = {hostile: 3} if field == "rank_pattern" else hostile
            file.write_text(json.dumps(content))
        else:
            names = {"change_header": checkpoint_fuzz.change_header}
            kinds = [*checkpoint_fuzz.COMMON, *names.values()]
            rng.choice(kinds)(root, rng)

        def read() -> str:
            merged = merge_lora(base, root)
            return "refused" if all_value_problems(merged) else "accepted"

        return ended(read)

    return spoil_and_read


def _traces(work: Path) -> Try:
    import parity

    whole = work / "capture"
    parity.capture(
        ff.sound(), whole, dtypes="f64,f32", modes="free,decode", scenarios="causal", length=5
    )
    sound = parity.compare(whole, whole)

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        root = Path(shutil.copytree(whole, place / "capture"))
        file = rng.choice(sorted(root.iterdir()))
        if rng.random() < 0.75:
            _spoil_trace(file, rng)
        else:
            rng.choice([checkpoint_fuzz.flip_anywhere, checkpoint_fuzz.truncate])(root, rng)

        def read() -> str:
            found = parity.compare(*rng.sample([root, whole], 2))
            if found.verdict == "equal" and len(found.rows) < len(sound.rows):
                return f"silent: {len(found.rows)} rows of {len(sound.rows)}"
            return "same" if found.verdict == "equal" else "noted"

        return ended(read)

    return spoil_and_read


def _spoil_trace(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.25:  # which no checksum tells
        fields = header[rng.choice([name for name in header if name != "__metadata__"])]
        same = {"F32": ["I32", "U32"], "F64": ["I64", "U64"], "I32": ["F32"], "BOOL": ["U8"]}
        shape = fields["shape"]
        shapes = [[int(np.prod(shape))], shape[::-1], [1, *shape], shape[1:] + shape[:1]]
        if rng.random() < 0.5:
            fields["dtype"] = rng.choice(same.get(fields["dtype"], ["BF16"]))
        else:
            fields["shape"] = rng.choice(shapes)
    elif rng.random() < 0.7:
        document = json.loads(header["__metadata__"]["parity_trace"])
        header["__metadata__"]["parity_trace"] = json.dumps(spoilt(document, rng))
    else:
        header = spoilt(header, rng)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _results(work: Path) -> Try:
    from records import result, row

    import parity
    from parity.report import json_file

    rows = [
        row("layers.0.q_proj"),
        row("logits"),
        row("layers.0.q_proj", lane="bf16"),
        row("logits", lane="bf16", rho=40.0, limit=16.0, error=0.1, noise=0.0055),
    ]
    json_file.write(result(rows), work / "result.json")
    whole = json.loads((work / "result.json").read_text())

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        file = place / "result.json"
        if rng.random() < 0.9:
            file.write_text(json.dumps(spoilt(whole, rng)))
        else:
            content = json.dumps(whole).encode()
            content = content[: rng.randrange(len(content))] + rng.choice(
                [b"", b"\xff", b"[" * 9999]
            )
            file.write_bytes(content)
        limits = rng.choice([[], ["f64=40"], ["bf16=3"]])

        def read() -> str:
            found = parity.recheck(file, limits=limits)
            parity.write_report(found, html=place / "report.html", junit=place / "junit.xml")
            return "accepted"

        return ended(read)

    return spoil_and_read


def _manifests(work: Path) -> Try:
    from jaxllama.checkpoint import check_manifest, convert, open_checkpoint

    made = {form: convert(ff.sound(), work / form, to=form).target for form in ("hf", "meta")}
    name = "jaxllama_manifest.json"

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        form = rng.choice(sorted(made))
        root = Path(shutil.copytree(made[form], place / "spoilt"))
        content = json.loads((root / name).read_text())
        kind = rng.choice(["manifest", "manifest", "manifest", "bytes", "file"])
        if kind == "manifest":
            (root / name).write_text(json.dumps(spoilt(content, rng)))
        elif kind == "bytes":
            data = bytearray((root / name).read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (root / name).write_bytes(data)
        else:
            (root / name).write_bytes(
                rng.choice([b"", b"[]", b"[" * 9999, b'{"version": 1}', b"\xff"])
            )
        return ended(lambda: str(check_manifest(open_checkpoint(root)))[:0] + "accepted")

    return spoil_and_read


def _gguf_keys(work: Path) -> Try:
    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.checkpoint.gguf.file import read_head
    from jaxllama.checkpoint.info import describe

    whole = ff.write(ff.sound(), work / "model.gguf", "gguf")
    head = read_head(whole)
    data = whole.read_bytes()
    first = min(tensor.offset for tensor in head.tensors.values())
    keys = [*sorted(head.metadata), "tokenizer.chat_template", "llama.rope.scaling.factor"]
    keys += ["llama.rope.scaling.type", "jaxllama.widened", "jaxllama.eos_token_ids"]
    keys += ["jaxllama.rope.scaling.low_freq_factor", "split.count", "jaxllama.config_json"]

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        metadata = dict(head.metadata)
        key = keys[number % len(keys)]
        metadata[key] = rng.choice(_GGUF_VALUES)
        file = place / "model.gguf"
        file.write_bytes(gguf_bytes(metadata, head.tensors, first) + data[first:])

        def read() -> str:
            checkpoint = open_checkpoint(file)
            tokenizer = checkpoint.tokenizer()
            tokenizer.encode("Hello, world!")
            if tokenizer.has_chat:
                ended(partial(_chat, tokenizer, [{"role": "user", "content": "hi"}]))
            return "refused" if describe(checkpoint).problems else "accepted"

        return ended(read)

    return spoil_and_read


_GGUF_VALUES: list[Any] = [
    *(True, False, -1, 0, 7, 2**40, 0.5, float("nan"), "", "x", "false", "9" * 5000),
    *(["x", "y"], [], np.zeros(3, np.int32), np.zeros(0, np.int32), np.ones(2, np.float32)),
    *(np.array([True, False]), ["a b", "c d"] * 200, np.arange(400, dtype=np.uint8)),
    *("{", '{"hidden_size": 3}', "{{ x", ["model.norm.weight=bfloat16"], np.uint64(2**64 - 1)),
]
_GGUF_TYPES = {"?": 7, "b": 1, "B": 0, "h": 3, "H": 2, "i": 5, "I": 4, "q": 11, "Q": 10, "l": 11}
_GGUF_TYPES |= {"f": 6, "d": 12, "L": 10}


def _gguf_value(value: Any) -> bytes:
    """Return a value's type and bytes."""
    if isinstance(value, str):
        text = value.encode()
        return struct.pack("<IQ", 8, len(text)) + text
    if isinstance(value, list):
        texts = [text.encode() for text in value]
        items = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
        return struct.pack("<IIQ", 9, 8, len(texts)) + items
    array = np.asarray(value)
    kind = struct.pack("<I", _GGUF_TYPES[array.dtype.char])
    if array.ndim:
        return struct.pack("<I", 9) + kind + struct.pack("<Q", array.size) + array.tobytes()
    return kind + array.tobytes()


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, Any], first: int) -> bytes:
    """Return a file before its tensors, at the alignment of most."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [struct.pack("<Q", len(key)), key.encode(), _gguf_value(value)]
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        parts += [struct.pack("<Q", len(name)), name.encode(), struct.pack("<I", len(shape))]
        parts.append(struct.pack(f"<{len(shape)}Q", *shape))
        parts.append(struct.pack("<IQ", int(tensor.type), tensor.offset - first))
    made = b"".join(parts)
    return made + bytes(-len(made) % 32)


def _states(work: Path) -> Try:
    """What PyTorch saves besides plain tensors."""
    import torch

    from jaxllama.checkpoint import open_checkpoint
    from jaxllama.checkpoint.checks import raise_problems, structure_problems, validate

    whole = ff.write(ff.sound(), work / "whole", "meta")
    state = torch.load(whole / "consolidated.00.pth", weights_only=True)

    def changed(name: str, rng: random.Random) -> Any:
        tensor = state[name]
        kinds: list[Callable[[], Any]] = [
            lambda: torch.nn.Parameter(tensor),
            lambda: tensor.clone().requires_grad_(),
            lambda: torch._neg_view(tensor),
            lambda: torch._neg_view(tensor).requires_grad_(),
            lambda: torch.complex(tensor, tensor),
            lambda: torch.complex(tensor, tensor).conj(),
            lambda: torch.complex(tensor, tensor).conj().imag,
            lambda: tensor.to_sparse(),
            lambda: tensor.t() if tensor.ndim == 2 else tensor[::2],
            lambda: tensor[:1].expand(10**6, *tensor.shape[1:]),
            lambda: torch.empty(0, 2**40),
            lambda: tensor.to(torch.float8_e4m3fn),
            lambda: tensor.to(torch.uint16),
            lambda: tensor.to(torch.bool),
            lambda: tensor.to("meta"),
            lambda: torch.tensor(3.0),
            lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            lambda: {"weight": tensor},
            lambda: [tensor],
            lambda: (torch.Size([3]), torch.float32, None, "x" * 999)[rng.randrange(4)],
            lambda: torch.nested.nested_tensor([tensor, tensor]),
            lambda: tensor.double() * 1e300,
            lambda: tensor.reshape(-1),
            lambda: tensor[None],
        ]
        return rng.choice(kinds)()

    def spoil_and_read(place: Path, number: int, rng: random.Random) -> str:
        root = Path(shutil.copytree(whole, place / "spoilt"))
        file, made = root / "consolidated.00.pth", dict(state)
        kind, name = rng.randrange(8), rng.choice(sorted(state))
        if kind < 5:
            made[name] = changed(name, rng)
        elif kind == 5:
            keys = [3, None, (1, 2), "\ud800", "x" * 2000, "", "a." * 200, b"x", 1.5, True]
            made[rng.choice(keys)] = made.pop(name)
        elif kind == 6:
            made = {n: torch.nn.Parameter(t) for n, t in made.items()}
        saved: Any = made
        if kind == 7:
            saved = rng.choice([list(made), None, {"model": made}, 5, torch.zeros(2), {}, "x"])
        torch.save(saved, file, _use_new_zipfile_serialization=rng.random() < 0.85)

        def read() -> str:
            checkpoint = open_checkpoint(root)
            raise_problems(checkpoint, structure_problems(checkpoint))
            validate(checkpoint)
            same = all(np.array_equal(checkpoint.read(n), values) for n, values in sound.items())
            return "same" if same else "accepted"

        return ended(read)

    opened = open_checkpoint(whole)
    sound = {name: opened.read(name).copy() for name in opened.tensors}
    return spoil_and_read


_DAMAGED = {"hf": 130, "sharded": 90, "split": 80, "gguf": 100, "meta": 110, "orbax": 90}
_FIELDED = {"hf": 240, "sharded": 110, "meta": 90, "orbax": 50, "gguf": 90}
FAMILIES: dict[str, Family] = {
    **{f"bytes {n}": Family(count, partial(_damage, n)) for n, count in _DAMAGED.items()},
    **{f"fields {n}": Family(count, partial(_fields, n)) for n, count in _FIELDED.items()},
    "bits": Family(40, partial(_data, False)),
    "bits, manifest": Family(60, partial(_data, True)),
    "manifests": Family(100, _manifests),
    "gguf keys": Family(200, _gguf_keys),
    "states": Family(140, _states),
    "templates": Family(300, _templates),
    "tokenizers": Family(260, _tokenizers),
    "adapters": Family(160, _adapters),
    "traces": Family(150, _traces),
    "results": Family(180, _results),
}
__all__ = ["FAMILIES", "VALUES", "Family", "Try"]
