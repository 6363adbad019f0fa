"""Plans: bytes and floors from published numbers, the search, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planting import planted
from terminals import check_verdict_last, terminal_lines, unreadable

from jaxllama import cli
from jaxllama.bench.floors import prefill_flops
from jaxllama.checkpoint import tiny
from jaxllama.errors import CheckpointError, InputError
from jaxllama.plan import process, search, topology
from jaxllama.plan.devices import DEVICES
from jaxllama.plan.memory import DeviceShare
from jaxllama.plan.process import MeasuredPrograms
from jaxllama.plan.request import check_plan
from jaxllama.plan.result import MeshPlan, PlanResult, step_seconds
from jaxllama.plan.run import plan
from jaxllama.plan.terminal import show
from jaxllama.presets import PRESETS
from jaxllama.quantisation import step_bytes, weights_bytes
from jaxllama.sharding import parse_mesh
from jaxllama.sharding.mesh import Sizes, mesh_in_words

# Descriptions of arrays are handed in where annotations say arrays.
pytestmark = pytest.mark.ill_typed
# Published: "8B", "70B" and "405B" are rounded.
PARAMETERS = {"8b": 8_030_261_248, "70b": 70_553_706_496, "405b": 405_853_388_800}
BF16 = np.dtype("bfloat16")


def share(model: str, mesh: str = "tensor=1", **asked: Any) -> DeviceShare:
    return search.share_of(check_plan(model, **asked), parse_mesh(mesh))


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *words])
    return stop.value.code or 0, *capsys.readouterr()


@pytest.mark.parametrize("model", PARAMETERS)
def test_weights_are_the_published_parameters(model: str) -> None:
    assert share(model, context=1).weights == 2 * PARAMETERS[model]


def test_a_cache_is_its_keys_and_values() -> None:
    # Of each layer 8 heads of 128, keys and values; then three numbers of 32 bits a slot and row.
    found = share("405b", batch=3, context=1000, cache_dtype="f32")
    assert found.cache_read == 4 * 2 * 126 * 3 * 1000 * 8 * 128
    assert found.cache == found.cache_read + 4 * (2 * 3 * 1000 + 3)


def test_one_device_has_the_floors_of_bench() -> None:
    config = PRESETS["llama-3.1-8b"]
    found = share("8b", batch=1, context=512)
    norms = 2 * (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert found.weights_read == step_bytes(config, "bf16") + norms
    assert found.prefill_flops == prefill_flops(config, 512)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_read_and_the_embedding_is_not(tied: bool) -> None:
    config = tiny().config.replace(tie_word_embeddings=tied)
    found = search.share_of(check_plan(config, context=8), parse_mesh("tensor=1"))
    table = 2 * config.vocab_size * config.hidden_size
    assert found.weights - found.weights_read == (0 if tied else table)


def test_a_mesh_cuts_what_is_held_and_what_is_read() -> None:
    whole, along = share("405b", batch=8), share("405b", "fsdp=8,tensor=8", batch=8)
    norms = 2 * (2 * 126 + 1) * 16_384
    assert along.weights == (whole.weights - norms) // 64 + norms
    # Put together along `fsdp` before it is read.
    assert along.weights_read == (whole.weights_read - norms) // 8 + norms
    assert along.cache_read * 64 == whole.cache_read and along.rows == 1
    assert along.prefill_flops * 64 == whole.prefill_flops
    # Eight rows are not cut along sixteen.
    assert share("405b", "fsdp=16,tensor=8", batch=8).rows == 8


def test_quantised_weights() -> None:
    byte, half = share("405b", quant="int8"), share("405b", quant="int4")
    mesh, config = "fsdp=8,tensor=8", PRESETS["llama-3.1-405b"]
    parts = [share("405b", mesh, quant=name) for name in ("int8", "int4")]
    for found, name in ((byte, "int8"), (half, "int4")):
        assert found.weights == weights_bytes(config, dtype="bf16", quant=name)
    assert 0.50 < byte.weights / share("405b").weights < 0.52 and half.weights < 0.33 * 811e9
    # Of int8 scales are as often there as rows are cut; rows of int4 are whole.
    assert byte.weights / 64 < parts[0].weights < 1.01 * byte.weights / 64
    assert half.weights / 64 < parts[1].weights


def fake(activations: int, temporaries: int, widened: bool = False) -> MeasuredPrograms:
    return MeasuredPrograms(0, activations, temporaries, "none", widened)


def test_what_fits_and_what_only_the_device_could_say() -> None:
    h100, one = DEVICES["h100"], share("8b", context=128)
    room = h100.usable - one.weights - one.cache
    copies = 2 * one.cache_read
    sizes = parse_mesh("tensor=1")
    assert MeshPlan(sizes, one, fake(room, 0)).fits(h100) is True
    assert MeshPlan(sizes, one, fake(0, room + 1)).fits(h100) is False
    assert MeshPlan(sizes, one, fake(room - copies, 0, widened=True)).fits(h100) is True
    assert MeshPlan(sizes, one, fake(room - copies + 1, 0, widened=True)).fits(h100) is None
    assert MeshPlan(sizes, one, fake(0, 2 * room + 2, widened=True)).fits(h100) is False


def found_for(made: int, **asked: Any) -> tuple[MeshPlan | None, list[str]]:
    """Search with a compiler that answers the same for every mesh."""
    request, tried = check_plan("405b", batch=8, **asked), []

    def plan_of(sizes: Sizes, part: DeviceShare) -> MeshPlan:
        tried.append(mesh_in_words(sizes))
        return MeshPlan(sizes, part, fake(made, made))

    assert request.device is not None
    return search.cheapest(request, request.device, plan_of, lambda line: None)[0], tried


def test_the_cheapest_mesh_is_the_smallest_that_fits() -> None:
    found, tried = found_for(10**9, device="h100")
    assert found is not None and found.devices == 32 and tried[-1] == mesh_in_words(found.sizes)
    # By hand: weights and cache of all devices, as bytes of each of sixteen, and of 32.
    known = 2 * PARAMETERS["405b"] + share("405b", batch=8).cache_read
    assert known / 16 > DEVICES["h100"].usable > found.peak > known / 32
    others = search.candidates(check_plan("405b", batch=8, device="h100"), DEVICES["h100"])
    same = [part for sizes, part in others if math.prod(sizes.values()) == 32]
    best = min(step_seconds(part, DEVICES["h100"]) for part in same)
    assert step_seconds(found.share, DEVICES["h100"]) == best
    quantised, _ = found_for(10**9, device="h100", quant="int8")
    assert quantised is not None and quantised.devices < found.devices


def test_the_mesh_that_was_asked_for_is_one_of_those_that_may_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of others the temporaries are too much, and the search gives up."""
    asked = {"data": 2, "fsdp": 8, "tensor": 8}

    def measure(request: Any, sizes: Sizes) -> MeasuredPrograms:
        return fake(10**9, 10**9 if sizes == asked else 10**12)

    monkeypatch.setattr("jaxllama.plan.run.measure", measure)
    request = check_plan("405b", mesh="data=2,fsdp=8,tensor=8", batch=16, device="h100")
    found = plan(request)
    assert found.given is not None and found.cheapest is found.given
    assert unreadable(lambda console: show(found, console)) == []
    check_verdict_last(lambda console: show(found, console))
    lines = terminal_lines(lambda console: show(found, console), 120)
    assert lines[0].startswith("fits, and cheaper ones were not all tried: 128 x h100")
    assert lines[1].startswith("llama-3.1-405b: ")


def test_a_search_ends() -> None:
    found, tried = found_for(10**12, device="h100")
    assert found is None
    assert search.MOST_TRIED < len(tried) <= search.MOST_TRIED + search.MOST_LARGER


def test_a_search_goes_on_to_larger_meshes_and_says_so() -> None:
    """Of the fewest devices there are more meshes than are tried, and none fits."""
    request, tried = check_plan("405b", batch=8, device="h100", quant="int8"), []

    def plan_of(sizes: Sizes, part: DeviceShare) -> MeshPlan:
        tried.append(math.prod(sizes.values()))
        made = 10**9 if tried[-1] >= 128 else 10**12
        return MeshPlan(sizes, part, fake(made, made))

    assert request.device is not None
    found, count, left = search.cheapest(request, request.device, plan_of, lambda line: None)
    assert found is not None and found.devices == 128 and left
    assert count == len(tried) and tried == sorted(tried) and tried.count(128) == 1
    shown = PlanResult(request, None, found, count, left, ())
    said = terminal_lines(lambda console: show(shown, console), 120)[0]
    assert said.startswith("fits, and cheaper ones were not all tried: 128 x h100")


def test_a_fault_in_the_order_is_seen() -> None:
    with planted(
        "jaxllama.plan.search", "return count, step_seconds", "return -count, step_seconds"
    ):
        found, _ = found_for(10**9, device="h100")
    assert found is not None and found.devices > 32


def test_a_plan_of_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    words = "tiny --mesh tensor=2 --context 64 --batch 3 --compiler cpu --device v5e --json"
    code, out, err = ran(capsys, *words.split())
    said = json.loads(out)
    assert code == 0 and said["device"]["name"] == "v5e" and "tensor=2" in err
    given, cheapest = said["given"], said["cheapest"]
    assert given["fits"] is True and cheapest["mesh"] == "tensor=1" and said["tried"] == 1
    sizes = given["bytes_per_device"]
    part = share("tiny", "tensor=2", context=64, batch=3)
    assert (sizes["weights"], sizes["cache"]) == (part.weights, part.cache)
    # What the compiler was handed, in float32.
    wide = share("tiny", "tensor=2", context=64, batch=3, dtype="f32")
    assert given["analysis"]["arguments"] == wide.weights + wide.cache + 3 * 5
    assert sizes["activations"] > sizes["temporaries"] > 0
    made = sizes["peak"] - sizes["weights"] - sizes["cache"]
    assert made == sizes["activations"] + 2 * part.cache_read
    floors = given["floors"]
    assert floors["decode_tokens_per_second"] == pytest.approx(3 / floors["step_seconds"])
    assert any("float32" in note for note in said["notes"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("8b --mesh tensor=3", "intermediate_size 14336 does not divide by tensor=3"),
        ("8b --mesh fsdp=2048", "takes 2048 devices; give at most 1024"),
        ("8b --mesh pipe=2", "axis 'pipe'"),
        ("tiny --mesh data=3 --device v5e --context 256", "no slice of v5e has 3 chips"),
        ("8b --mesh fsdp=512 --device v6e", "has 512 chips; there are those of 1, 2, 4,"),
        ("8b --context 131073", "a context of 131072"),
        ("8b --batch 0", "--batch 0"),
        ("8b --context 64 --chunk 65", "--chunk 65"),
        ("8b --device h900", "expected one of h100"),
        ("8b --quant int2", "expected one of int8, int4"),
        ("8b --dtype f64", "expected one of bf16"),
        ("8b --compiler device", "--device"),
        ("8b --compiler gcc", "expected one of auto"),
        ("9b", "no published model has that name"),
        ("./nothing-here", "does not exist"),
    ],
)
def test_what_cannot_be_planned_is_one_error(
    words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_ask", lambda *_: pytest.fail("something was compiled"))
    code, out, err = ran(capsys, *words.split())
    assert code == 2 and out == "" and said in err and err.startswith("jaxllama: ")


def test_all_that_cannot_be_planned_is_said_at_once() -> None:
    wrong = {"mesh": "fsdp=2048", "device": "h900", "dtype": "f64", "cache_dtype": "int4"}
    wrong |= {"quant": "int2", "compiler": "gcc"}
    said = (
        "plan: 9 problems",
        "device='h900': expected one of h100",
        "dtype float64: expected one of bf16",
        "or int8",
        "quant int2: expected one of int8",
        "mesh='fsdp=2048': takes 2048 devices",
        "batch=0: expected a whole number",
        "context: 131073 tokens",
        "chunk=131074: more than the context of 131073",
        "compiler='gcc': expected one of auto",
    )
    with pytest.raises(InputError) as found:
        check_plan("8b", batch=0, context=131_073, chunk=131_074, **wrong)
    for one in said:
        assert one in str(found.value)
    # Of a model that is not there, what can be said without it.
    with pytest.raises(InputError) as found:
        check_plan("9b", batch=0, context=131_073, mesh="pipe=2", quant="int2")
    for one in ("4 problems", "no published model has that name", "axis 'pipe'", said[4], said[6]):
        assert one in str(found.value)


def test_a_configuration_alone_is_read(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny().config.to_hf()))
    assert check_plan(tmp_path).config == tiny().config
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError):
        check_plan(tmp_path)


def test_a_device_without_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    answer = {"arguments": 1, "activations": 2, "temporaries": 3}
    monkeypatch.setattr(process, "_ask", lambda asked, sizes: answer)
    for name, extra in (("h100", "cuda"), ("v5e", "tpu")):
        request = check_plan("tiny", device=name, context=32)
        result = plan(request)
        assert result.cheapest is not None and result.cheapest.measured.widened
        assert any(f"jaxllama[{extra}]" in note for note in result.notes)
        with pytest.raises(InputError, match=f"jaxllama.{extra}.' brings it"):
            plan(replace(request, compiler="device"))


def test_a_devices_own_compiler_is_asked_about_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def answer(question: dict[str, Any], sizes: Sizes) -> dict[str, int]:
        asked.append(question)
        return {"arguments": 1, "activations": 2, "temporaries": 3}

    monkeypatch.setattr(process, "_ask", answer)
    for why, name in ((None, "int4:8"), ("it is not installed", None)):
        monkeypatch.setattr(process, "why_not", lambda device, count, why=why: why)
        result = plan(check_plan("tiny", device="h100", context=32, quant="int4:8"))
        assert asked[-1]["quant"] == name and asked[-1]["own"] == (why is None)
        said = any("the program with none in fewer bits" in note for note in result.notes)
        assert said == (why is not None)


def test_a_slice_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed in (object(), None):
        monkeypatch.setattr(topology, "find_spec", lambda name, found=installed: found)
        assert "has 512 chips" in str(topology.why_not(DEVICES["v5e"], 512))
        assert (topology.why_not(DEVICES["v5e"], 256) is None) == (installed is not None)
        assert (topology.why_not(DEVICES["h100"], 512) is None) == (installed is not None)


@pytest.mark.parametrize(("name", "batch", "largest"), [("v5e", 64, 256), ("v5p", 64, 1024)])
def test_a_search_is_among_slices_that_there_are(name: str, batch: int, largest: int) -> None:
    """Of v5e 405B would need 512 chips with a cache of so many tokens: there are not as many."""
    device = DEVICES[name]
    known = search.candidates(check_plan("405b", batch=batch, context=131_072, device=name), device)
    counts = {math.prod(sizes.values()) for sizes, _ in known}
    assert counts <= set(device.slices or {}) and max(counts, default=0) <= largest
    assert bool(counts) == (name == "v5p")


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (lambda *_, **__: subprocess.CompletedProcess([], 1, "", "a\nlast words\n"), "last words"),
        (lambda *_, **__: subprocess.CompletedProcess([], -9, "", ""), "exit code -9"),
    ],
)
def test_a_process_that_is_lost_is_said(
    done: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.subprocess, "run", done)
    with pytest.raises(InputError, match=said):
        plan(check_plan("tiny", context=32, compiler="cpu"))


def test_a_device_as_xla_wants_it() -> None:
    for one in DEVICES.values():
        assert (one.cuda is None) == (one.slices is not None)
        assert one.usable < one.memory
        for count, sides in (one.slices or {}).items():
            assert math.prod(sides) == count
