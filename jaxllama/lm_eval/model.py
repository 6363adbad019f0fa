"""What lm-evaluation-harness asks of a model, answered by ours.

Texts are joined, cut and windowed as the harness's own backend for transformers does it, so that
both have the same figures.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from jaxllama.checkpoint import load_model, open_checkpoint
from jaxllama.errors import InputError, meant
from jaxllama.lm_eval.scoring import Scorer
from jaxllama.sampling import Sampling
from jaxllama.text import generate_text

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# A text and its continuation, and the ids of both.
Scored = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessLlama(TemplateLM):
    """A checkpoint as a model of the harness, `--model jaxllama`.

    Args:
        pretrained: what `jaxllama.open_checkpoint` takes: a directory, a file, a name of the Hub.
        dtype: of weights and arithmetic.
        batch_size: rows that are run together.
        max_batch_size: as the harness hands it on; the batch size is what is told.
        device: likewise, `cuda:0` unless told; JAX has chosen its own (`JAX_PLATFORMS`).
        max_length: tokens of a context; the configuration's if not given.
        max_gen_toks: tokens to write where a task does not say.
        add_bos_token: whether texts begin with it; as the tokenizer's files say if not given.
        quant: `int8`, `int4` or `int4:GROUP`, see `jaxllama.quantisation`.
        mesh: devices to lay the model out on, see `jaxllama.sharding`.
        seed: of sampled texts.
        options: none; a name that is not known is refused.

    Raises:
        InputError: an argument is none of these, or the checkpoint has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str = "f32",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        quant: str | None = None,
        mesh: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        for name in options:
            known = [*inspect.signature(type(self)).parameters][1:-1]
            raise InputError(
                f"--model_args {name}: {meant(name, known)}expected some of pretrained, "
                f"{', '.join(known)}"
            )
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise InputError(f"--batch_size {batch_size}: expected a whole number above 0")
        opened = open_checkpoint(pretrained)
        self._ours = opened.tokenizer()
        self._model = load_model(opened, dtype=dtype, quant=quant, mesh=mesh)
        self._score = Scorer(self._model)
        self._path, self._add_bos, self._seed = pretrained, add_bos_token, seed
        self.batch_size = int(batch_size)
        context = max_length or opened.config.max_position_embeddings
        if context is None:
            raise InputError(f"{pretrained}: names no context; give --model_args max_length=TOKENS")
        self.max_length = context
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The first of the tokens that end a text."""
        return self._ours.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        return self.eot_token_id if self._ours.bos_id is None else self._ours.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps requests under."""
        return str(self._path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return a text's ids; bos comes first as told, and never twice."""
        bos = self._add_bos if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(
            self._ours.decode([self.prefix_token_id])
        ):
            bos = False
        return self._ours.encode(string, bos=bos)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return what the harness tells chats apart by; the checkpoint has one template at most."""
        if isinstance(chat_template, str):
            raise InputError(
                f"--apply_chat_template {chat_template}: a checkpoint's own is the one there is; "
                "leave the name out"
            )
        return f"the chat template of {self._path}" if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the text that the model was trained on."""
        if not add_generation_prompt:
            raise InputError("the harness asks for an answer that is begun, which is not written")
        return self._ours.render_chat(chat_history)

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        rows = []
        for _text, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise InputError(
                    f"a continuation of {len(continuation)} tokens: expected 1 to the "
                    f"{self.max_length} of the context"
                )
            rows.append((context + continuation)[-(self.max_length + 1) :])
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # memory shows first
        progress = tqdm(total=len(rows), disable=disable_tqdm, desc="scoring")
        for batch in _cut(order, self.batch_size):
            scored = self._score([rows[i] for i in batch], self.batch_size)
            for i, (likely, best) in zip(batch, scored, strict=True):
                text, _context, continuation = requests[i]
                last = slice(-len(continuation), None)
                found[i] = float(likely[last].sum()), bool(best[last].all())
                if text is not None:  # else the part of a text
                    self.cache_hook.add_partial("loglikelihood", text, found[i])
            progress.update(len(batch))
        progress.close()
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return how likely whole texts are, each token once, in windows of the context."""
        windows: list[Scored] = []
        of = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                of.append(number)
        sums = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for number, (likely, _) in zip(of, scored, strict=True):
            sums[number] += likely
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what is written after each text, up to the first of its stops."""
        found = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        progress = tqdm(total=len(requests), disable=disable_tqdm, desc="writing")
        for group in alike.values():
            asked = dict(normalize_gen_kwargs(requests[group[0]].args[1], self.max_gen_toks))
            most, stops = asked.pop("max_gen_toks"), [s for s in asked.pop("until") if s]
            if not 0 < most < self.max_length:
                raise InputError(
                    f"max_gen_toks {most}: expected 1 to {self.max_length - 1}, what the context "
                    "leaves beside a token"
                )
            room, sampling = self.max_length - most, _sampling(asked)
            prompts = {i: self.tok_encode(requests[i].args[0])[-room:] for i in group}
            for batch in _cut(sorted(group, key=lambda i: -len(prompts[i])), self.batch_size):
                written = generate_text(
                    self._model,
                    self._ours,
                    [prompts[i] for i in batch],
                    max_new_tokens=most,
                    sampling=sampling,
                    stop=stops,
                    seed=self._seed,
                )
                for i, text in zip(batch, written.texts, strict=True):
                    found[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                progress.update(len(batch))
        progress.close()
        return found


def _cut(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (order[first : first + size] for first in range(0, len(order), size))


def _sampling(options: Mapping[str, Any]) -> Sampling:
    """Return how tokens are chosen, of what a task asks for."""
    given = dict(options)
    if not given.pop("do_sample"):
        return Sampling()
    if unknown := sorted({*given} - {*_SAMPLING}):
        raise InputError(f"--gen_kwargs {unknown[0]}: expected some of {', '.join(_SAMPLING)}")
    return Sampling(**given)
