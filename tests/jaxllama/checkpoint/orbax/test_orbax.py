from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.checkpoint import convert, open_checkpoint, tiny, validate, verify
from jaxllama.checkpoint.orbax import read as orbax_read
from jaxllama.checkpoint.orbax.write import save_sharded
from jaxllama.errors import CheckpointError
from parity.sources.open import open_source

# Eight devices have to be asked for before JAX starts, so in a process of its own.
MESHES = textwrap.dedent("""
    import sys
    from pathlib import Path
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from jaxllama.checkpoint import open_checkpoint, tiny, verify
    from jaxllama.checkpoint.orbax.read import restore_sharded
    from jaxllama.checkpoint.orbax.write import save_sharded

    def placed(mesh, *axes):
        def sharding(name, shape):
            spec = PartitionSpec(*axes) if len(shape) == 2 else PartitionSpec()
            return NamedSharding(mesh, spec)
        return sharding

    source, path = tiny(num_hidden_layers=2), Path(sys.argv[1])
    first = placed(jax.make_mesh((8,), ("x",)), "x", None)
    tensors = {
        name: jax.device_put(source.read(name), first(name, info.shape))
        for name, info in source.tensors.items()
    }
    save_sharded(path, tensors, source)
    assert verify(source, path).equal
    second = placed(jax.make_mesh((2, 4), ("a", "b")), "b", "a")
    for name, array in restore_sharded(path, second).items():
        expected = source.read(name)
        assert array.sharding == second(name, expected.shape)
        if expected.ndim == 2:
            shard = array.addressable_shards[3].data
            assert shard.shape == (expected.shape[0] // 4, expected.shape[1] // 2)
        assert np.array_equal(np.asarray(array), expected)
    try:
        save_sharded(path, tensors, source)
    except ValueError as error:
        assert "exists already" in str(error)
    print("restored", path)
""")


def test_restores_on_another_mesh_than_it_was_saved_on(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-c", MESHES, tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith(f"restored {tmp_path / 'out'}\n")


HOST = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    import jax, numpy as np
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    from jax.sharding import NamedSharding, PartitionSpec
    from jaxllama.checkpoint import tiny
    from jaxllama.checkpoint.orbax.read import restore_sharded

    mesh, source = jax.make_mesh((2,), ("x",)), tiny(num_hidden_layers=1)
    def rows(name, shape):
        return NamedSharding(mesh, PartitionSpec("x") if len(shape) == 2 else PartitionSpec())
    for name, array in restore_sharded(Path(sys.argv[3]), rows).items():
        for shard in array.addressable_shards:
            assert np.array_equal(np.asarray(shard.data), source.read(name)[shard.index])
    print("restored", flush=True)
    os._exit(0)
""")


def test_each_host_reads_its_own_slices_alone(tmp_path, monkeypatch):
    """Of two hosts each has a copy without the chunks that the other alone needs."""
    import orbax.checkpoint.experimental.v1 as ocp

    monkeypatch.setattr(orbax_read, "_CHUNK_BYTES", 4096)
    whole = convert(tiny(num_hidden_layers=1), tmp_path / "whole", to="orbax").target
    hosts = []
    for rank in range(2):
        directory = Path(shutil.copytree(whole, tmp_path / f"host{rank}"))
        for name, leaf in ocp.metadata(whole / "arrays").metadata.items():
            half, step = leaf.shape[0] // 2, leaf.storage_metadata.chunk_shape[0]
            for chunk in directory.rglob(f"{name}/c/*/*"):  # of matrices
                first = int(chunk.parent.name) * step
                if first >= half if rank == 0 else first + step <= half:
                    chunk.unlink()
        hosts.append(directory)
    with pytest.raises(CheckpointError, match="damaged or not complete"):
        validate(open_checkpoint(hosts[0]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(port), str(rank), directory],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, directory in enumerate(hosts)
    ]
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert out == "restored\n", errors[-2000:]


def test_arrays_are_stored_in_chunks(tmp_path, monkeypatch):
    """So that a host which holds a part of an array reads that part alone."""
    import orbax.checkpoint.experimental.v1 as ocp

    monkeypatch.setattr(orbax_read, "_CHUNK_BYTES", 4096)
    target = convert(tiny(num_hidden_layers=1), tmp_path / "out", to="orbax").target
    stored = ocp.metadata(target / "arrays").metadata["lm_head.weight"]
    chunk = stored.storage_metadata.chunk_shape
    assert 4 * np.prod(chunk) <= 4096 < 4 * np.prod(stored.shape)


def test_links_are_refused(tmp_path):
    target = convert(tiny(num_hidden_layers=1), tmp_path / "out", to="orbax").target
    os.rename(target / "arrays", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", target / "arrays")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        open_checkpoint(target)


@pytest.mark.parametrize("damage", ["metadata", "data", "description", "arrays"])
def test_damage_is_one_line(tmp_path, damage, capfd):
    target = convert(tiny(num_hidden_layers=1), tmp_path / "out", to="orbax").target
    state = target / "arrays" / "state"
    if damage == "metadata":
        (state / "_METADATA").write_text("{")
    elif damage == "data":
        (state / "lm_head.weight" / "c" / "0" / "0").unlink()
    elif damage == "description":
        for description in state.rglob("zarr.json"):
            description.write_bytes(b"x")
    else:
        shutil.rmtree(state)
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=r"arrays: damaged or not complete") as error:
        validate(open_checkpoint(target))
    assert "\n" not in str(error.value)
    gc.collect()
    assert capfd.readouterr().err == ""


def test_relative_paths_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert("tiny", "out", to="orbax")
    assert verify("tiny", "out").equal
    save_sharded(Path("saved"), {"a": jnp.arange(3.0)}, tiny().config)
    assert (tmp_path / "saved" / "arrays").is_dir()


@pytest.mark.parametrize("ocdbt", [False, True])
@pytest.mark.parametrize("zarr3", [False, True])
def test_directories_as_orbax_saves_them_by_itself(tmp_path, ocdbt, zarr3):
    """Compressed, in one store or in files: read to the bit, by parity's own reader too."""
    import orbax.checkpoint.experimental.v1 as ocp

    source = tiny(num_hidden_layers=1)
    target = convert(source, tmp_path / "out", to="orbax").target
    shutil.rmtree(target / "arrays")
    saving = orbax_read.context()  # which is quiet
    saving.array.saving.use_compression = True
    saving.array.saving.use_ocdbt, saving.array.saving.use_zarr3 = ocdbt, zarr3
    with saving:
        ocp.save(target / "arrays", {n: jnp.asarray(source.read(n)) for n in source.tensors})
    assert verify(source, target).equal
    again = open_source(target)
    for name in source.tensors:
        assert np.array_equal(again.read(name), source.read(name))


def test_what_is_no_array_for_each_name_is_refused(tmp_path):
    import orbax.checkpoint.experimental.v1 as ocp

    target = convert(tiny(num_hidden_layers=1), tmp_path / "out", to="orbax").target
    shutil.rmtree(target / "arrays")
    with orbax_read.context():
        ocp.save(target / "arrays", {"model": {"norm": jnp.ones(3)}})
    with pytest.raises(CheckpointError, match="does not describe one array for each name"):
        open_checkpoint(target)


def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path):
    target = convert(tiny(num_hidden_layers=1), tmp_path / "out", to="orbax").target
    file = target / "arrays" / "state" / "_METADATA"
    file.write_text(file.read_text().replace('"lm_head.weight"', '"../../elsewhere"'))
    with pytest.raises(CheckpointError, match="is no name of an array's directory"):
        open_checkpoint(target)
