"""A whole training: the loss falls, a run that was stopped goes on to the same bits."""

from __future__ import annotations

import signal
import struct
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import trainings
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2
from trainings import config, settings

from jaxllama import CheckpointError, ConfigError, InputError, Llama, open_checkpoint
from jaxllama.checkpoint.samples import tiny
from jaxllama.cli import main
from jaxllama.errors import TrainingError
from jaxllama.train import Progressed, Trained, TrainingRun, read_config, train
from jaxllama.train.command import _left
from jaxllama.train.config import TrainConfig
from jaxllama.train.events import Events
from jaxllama.train.state import SavedStates, latest_step

Told = list[Progressed]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Told, Path]:
    folder, told = tmp_path_factory.mktemp("whole"), []
    return train(config(folder), progress=told.append), told, folder


def bits(folder: Path, given: TrainConfig | None = None) -> list[np.ndarray]:
    """Return all of the last state of a run."""
    given = given or config(folder)
    run = TrainingRun(given)
    states = SavedStates(given, trainings.digest(run))
    state, data, _ = states.restore(run.state)
    states.close()
    return [*map(np.asarray, jax.tree.leaves(state)), np.frombuffer(data.encode(), np.uint8)]


def read_events(content: bytes) -> list[Any]:
    """Return events as tensorboardX's protocol buffers and checksums have them."""
    found, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + 12 + length
        for part, after in ((content[at : at + 8], at + 8), (content[at + 12 : end], end)):
            crc = crc32c(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", content, after) == (masked,)
        found.append(event_pb2.Event.FromString(content[at + 12 : end]))
        at = end + 4
    return found


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def test_the_loss_falls_and_a_checkpoint_is_written(whole: tuple[Trained, Told, Path]) -> None:
    done, told, folder = whole
    assert done.losses[-1] < 0.7 * done.losses[0]
    assert [one.step for one in told] == [*range(1, 9)]
    assert told[0].rate == pytest.approx(1e-3) and told[1].rate == pytest.approx(2e-3)
    assert all(one.tokens > 100 and one.gradient > 0 for one in told)
    trained = open_checkpoint(done.model)
    assert trained.tokenizer().encode("ab") == tiny().tokenizer().encode("ab")
    assert Llama.from_pretrained(trained).config.hidden_size == 96
    (file,) = (folder / "out/events").iterdir()
    first, *events = read_events(file.read_bytes())
    assert first.file_version == "brain.Event:2"
    curves = [{one.tag: one.simple_value for one in event.summary.value} for event in events]
    assert [event.step for event in events] == [*range(1, 9)]
    losses = np.float32(done.losses).tolist()
    assert [curve["train/loss"] for curve in curves] == losses
    assert all(curve["train/tokens_per_second"] > 0 for curve in curves)


def test_a_number_beyond_float32_is_infinite_in_tensorboard(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.write(1, {"large": 1e300, "small": -1e-300, "none": np.nan, "one": 0.1})
    events.close()
    (file,) = tmp_path.iterdir()
    found = [one.simple_value for one in read_events(file.read_bytes())[1].summary.value]
    np.testing.assert_array_equal(found, np.float32([np.inf, 0, np.nan, 0.1]))


def test_ctrl_c_leaves_a_state_that_goes_on_to_the_same_bits(
    whole: tuple[Trained, Told, Path], tmp_path: Path
) -> None:
    def interrupt(told: Progressed) -> None:
        if told.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path), progress=interrupt)
    assert latest_step(tmp_path / "out") == 3
    assert not (tmp_path / "out/model").exists()
    rest = train(config(tmp_path), resume=True)
    assert rest.losses == whole[0].losses[3:]
    assert same(bits(tmp_path), bits(whole[2]))
    again = train(config(tmp_path), resume=True)
    assert again.losses == ()


def test_another_order_of_rows_has_other_bits(
    whole: tuple[Trained, Told, Path], tmp_path: Path
) -> None:
    other = train(config(tmp_path, data={"seed": 1}))
    assert other.losses != whole[0].losses
    assert not same(bits(tmp_path, config(tmp_path, data={"seed": 1})), bits(whole[2]))


def test_a_run_of_another_training_is_not_gone_on_with(
    whole: tuple[Trained, Told, Path], tmp_path: Path
) -> None:
    given = settings(whole[2], optimiser={"learning_rate": 1e-3}, data={"batch": 3})
    with pytest.raises(InputError, match=r"2 problems\n.*batch = 3, then 4\n.*rate = 0.001, then"):
        train(TrainConfig.from_dict(given), resume=True)
    with pytest.raises(InputError, match="exists already; go on with it by --resume"):
        train(config(whole[2]))
    with pytest.raises(InputError, match="no saved state"):
        train(config(tmp_path), resume=True)


def test_a_damaged_state_is_one_error(tmp_path: Path) -> None:
    given = config(tmp_path, run={"steps": 1}, optimiser={"warmup": 0})
    train(given)
    for path in (tmp_path / "out/states/1/state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"states/1: cannot be read .*remove it to go on"):
        train(given, resume=True)


def test_all_of_a_configuration_is_wrong_at_once(tmp_path: Path) -> None:
    given: dict[str, Any] = settings(
        tmp_path,
        optimiser={"lerning_rate": 1, "learning_rate": -1, "schedule": "x", "clip": True},
        run={"steps": 0.5},
        model={"mesh": 3},
        dta={},
    )
    del given["data"]["batch"]
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(given)
    said = str(caught.value)
    assert "configuration: 8 problems" in said
    for part in (
        "[dta]: no such section; did you mean data?",
        "[optimiser] lerning_rate: no such setting; did you mean learning_rate?",
        "[optimiser] learning_rate = -1: expected a number above 0",
        "[optimiser] schedule = 'x': expected one of constant, linear, cosine",
        "[optimiser] clip = True: expected a number above 0",
        "[run] steps = 0.5: expected a whole number from 1 to 2147483647",
        "[model] mesh = 3: expected a text that is not empty",
        "[data] batch is missing: a whole number of at least 1",
    ):
        assert part in said
    with pytest.raises(ConfigError, match="3 parts"):
        config(tmp_path, optimiser={"accumulate": 3})
    large = {"data": {"seed": 2**32}, "lora": {"seed": 2**64}, "run": {"steps": 2**31}}
    with pytest.raises(
        ConfigError, match=r"4 problems\n.*seed = 4294967296: .* from 0 to 4294967295\n"
    ):
        config(tmp_path, **large, optimiser={"learning_rate": 10**400})
    with pytest.raises(ConfigError, match=r"1e\+39: expected a number above 0, at most 3\.4e\+38"):
        config(tmp_path, optimiser={"learning_rate": 1e39})
    assert config(tmp_path, data={"seed": 2**32 - 1}).data.seed == 2**32 - 1
    (tmp_path / "c.toml").write_text("[model")
    with pytest.raises(ConfigError, match="is no TOML"):
        read_config(tmp_path / "c.toml")
    with pytest.raises(CheckpointError, match=r"absent\.toml"):
        read_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("short.txt", b"short", "too few for a batch of 4; give more text"),
        ("empty.txt", b"", "empty.txt"),
        ("bytes.txt", b"abc\n\xff", "line 2, is not UTF-8"),
        (
            "broken.jsonl",
            b'{"text": "a"}\n{"text": \n',
            "line 2 is no JSON: Expecting value at column 10",
        ),
        ("half.jsonl", b'"\\u00e9"\n"\\ud83d\\ude00"\n"\\ud800"\n', "line 3 has a lone surrogate"),
        ("absent.txt", None, "absent.txt"),
    ],
)
def test_a_text_that_cannot_be_used_is_one_error(
    name: str, content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    written = trainings.toml(settings(tmp_path, data={"files": [str(tmp_path / name)]}))
    (tmp_path / "c.toml").write_text(written)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "c.toml")])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rows_beyond_the_context_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxllama.train.run.load_model", None)
    said = r"^\[data\] length = 131073: 131073 tokens, .* a context of 131072 .*a smaller length"
    with pytest.raises(ConfigError, match=said):
        train(config(tmp_path, data={"length": 131073}))


@pytest.mark.parametrize("mesh", ["foo=2", "data=4096"])
def test_a_mesh_that_is_none_is_told_as_the_setting_that_it_is(mesh: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^\[model\] mesh(: axis 'foo'|='data=4096': takes)"
    ) as said:
        train(config(tmp_path, model={"mesh": mesh}))
    assert "--mesh" not in said.value.command


def test_nan_among_the_weights_is_one_error(tmp_path: Path) -> None:
    model = Llama.from_pretrained("tiny", form="stacked")
    model.save_pretrained(tmp_path / "nan")
    shards = [*(tmp_path / "nan").glob("*.safetensors")]
    content = bytearray(shards[0].read_bytes())
    content[-4:] = np.float32("nan").tobytes()
    shards[0].write_bytes(content)
    with pytest.raises(CheckpointError, match="NaN"):
        train(config(tmp_path, model={"checkpoint": str(tmp_path / "nan")}))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_moves_nothing(tmp_path: Path) -> None:
    run = TrainingRun(config(tmp_path))
    batch = run.on_devices(next(run.batches))
    name = "layers.mlp.up_proj.weight"
    run.state.weights[name] = run.state.weights[name].at[2, 0, 0].set(np.inf)
    before = [np.array(x) for x in jax.tree.leaves(run.state)]
    assert not run.step(batch).finite
    assert same(before, [*map(np.asarray, jax.tree.leaves(run.state))])
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        run.advance(0)


def test_the_command_trains_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text(trainings.toml(settings(tmp_path, run={"steps": 3})))

    def typed(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["train", str(tmp_path / "c.toml"), *words])
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    code, out, err = typed("--resume")
    assert code == 2 and "leave out --resume" in err
    code, out, err = typed()
    assert code == 0 and "tokens/s" in err
    assert out.startswith(f"{tmp_path}/out/model: loss ")
    code, out, err = typed()
    assert code == 2 and "go on with it by --resume, or choose another" in err
    code, out, err = typed("--resume")
    assert code == 0 and "nothing left to train, 3 steps" in out
    assert "after step 3 is saved" in _left(tmp_path / "out")


def test_without_the_extra_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(trainings.toml(settings(tmp_path)))
    for name in [one for one in sys.modules if one.startswith("jaxllama.train.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "c.toml")])
    said = "training needs grain, which is not installed; pip install 'jaxllama[train]'"
    assert caught.value.code == 2 and capsys.readouterr().err == f"jaxllama: {said}\n"
