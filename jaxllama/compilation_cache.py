"""Compiled programs kept from one process to the next: on in the commands, off in a library.

JAX works out the key of a program; this says where its bytes lie and that they are whole. JAX's own
folder of files is not used: there an entry cut short is never written again, and a bound on its
size takes a lock and a walk through all files for every program.

Source:
    jax/_src/compilation_cache.py, cache_key.py, lru_cache.py of jax 0.10.2.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

NO_CACHE = "JAXLLAMA_NO_CACHE"
# `parity run tiny` keeps 0.9 MB.
MOST_BYTES = 1_000_000_000
# Evicting goes down to this share, so that the next entry does not walk through all files again.
_LEFT = 0.8
# Small ones too: of the 73 programs of `parity run tiny` few take JAX's own minimum, a second.
_MIN_COMPILE_SECONDS = 0.0
# Older loaders print a line on standard error for every entry that they read on a machine with
# AVX-512 (jax-ml/jax issue 38445).
_OLDEST_JAX = (0, 10, 2)
# Variables by which the same program becomes other code, or other code is chosen for it.
_PREFIXES = ("DNNL_", "JAX_", "LIBTPU_", "NVIDIA_", "ONEDNN_", "PJRT_", "TF_XLA_", "XLA_")
_VARIABLES = ("NPROC",)
# The older way to have the CPU stand for several devices, in XLA_FLAGS.
_COUNT = "xla_force_host_platform_device_count"
# In /proc/cpuinfo, on x86, Arm, POWER and RISC-V. What a virtual machine shows of its flags may be
# the same on two processors for which a compiler chooses differently, hence the rest.
_PROCESSOR = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
    *("cpu", "isa", "uarch"),
)


def turn_off() -> None:
    """Obey `--no-cache`, in this process and in those that it starts."""
    os.environ[NO_CACHE] = "1"


def turn_on() -> None:
    """Keep what JAX compiles in this process from now on, in the user's cache folder.

    Nothing is done where the variable `JAXLLAMA_NO_CACHE` is set, nor where JAX has been given a
    folder already (`jax_compilation_cache_dir`), nor where the CPU stands for several devices. What
    cannot be kept is compiled: one note on standard error says why.
    """
    if os.environ.get(NO_CACHE):
        return
    import jax
    from jax._src import compilation_cache as of_jax

    from jaxllama.checkpoint.samples import cache_directory

    inside: Any = of_jax
    config: Any = jax.config
    if config.jax_compilation_cache_dir or isinstance(inside._cache, Entries):
        return
    if _several_devices_share_the_cpu(config):
        return
    if jax.__version_info__ < _OLDEST_JAX or not hasattr(inside, "_cache"):
        _say(f"not with jax {jax.__version__}")
        return
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    inside.reset_cache()  # which has it ask again whether there is one
    inside._cache = Entries(cache_directory() / "compiled")


def _several_devices_share_the_cpu(config: Any) -> bool:
    """Return whether one CPU stands for several devices, as in trials of a mesh.

    A training on eight of them has been seen to wait for ever when its program came out of the
    cache, some devices in one sum over all and some in another; never when it was compiled there.
    """
    return config.jax_num_cpu_devices > 1 or _COUNT in os.environ.get("XLA_FLAGS", "")


def is_on() -> bool:
    """Return whether this process keeps what it compiles here."""
    of_jax: Any = sys.modules.get("jax._src.compilation_cache")
    return of_jax is not None and isinstance(of_jax._cache, Entries)


class Entries:
    """Bytes by key, in a folder of the machine's own; see `jax._src.compilation_cache_interface`.

    An entry is a file: a digest of its key and of what follows, then that. It appears at once or
    not at all, and one that is not whole is not there.

    Args:
        root: folder of all machines' folders; made when it is needed.
        most_bytes: what all entries below `root` may take together; the longest unread go first.
    """

    def __init__(self, root: Path, most_bytes: int = MOST_BYTES) -> None:
        self._root, self._most = root, most_bytes
        self._path = root  # JAX says it in its log
        self._folder: Path | None = None
        self._usable = self._writable = True
        self._since_count = most_bytes  # bytes written since all files were counted
        self._lock = threading.RLock()

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, None without it."""
        path = self._file(key)
        if not self._usable:
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._stop(error)
            return None
        digest, value = content[:32], content[32:]
        if digest != _digest(key, value):
            return None
        with suppress(OSError):
            os.utime(path)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep something under a key, in place of what is there."""
        path = self._file(key)
        if not self._writable:
            return
        partial: str | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            number, partial = tempfile.mkstemp(".partial", dir=path.parent)
            with os.fdopen(number, "wb") as file:
                file.write(_digest(key, value) + value)
            os.replace(partial, path)
            partial = None
            self._bound(len(value))
        except OSError as error:
            self._stop(error)
        finally:
            if partial is not None:
                with suppress(OSError):
                    os.unlink(partial)

    def _file(self, key: str) -> Path:
        """Return where a key's entry lies; JAX's backends are there, as it is compiling for one."""
        with self._lock:
            if self._folder is None:
                self._folder = self._root / machine()
                self._check_owner(self._folder)
        return self._folder / hashlib.sha256(key.encode()).hexdigest()

    def _check_owner(self, folder: Path) -> None:
        """Read no programs that another user could have put there."""
        try:
            found = folder.lstat()
        except OSError:
            return  # nothing to read; writing says why it fails
        if stat.S_ISLNK(found.st_mode):
            self._usable = False
            self._stop(f"{folder} is a symbolic link")
        elif found.st_uid != os.geteuid() or found.st_mode & 0o022:
            self._usable = False
            self._stop(f"{folder} belongs to another user, or others may write to it")

    def _bound(self, size: int) -> None:
        """Evict where there is too much, counting all files after every sixteenth of the most."""
        with self._lock:
            self._since_count += size
            if self._since_count <= self._most / 16:
                return
            self._since_count = 0
            evict(self._root, self._most)

    def _stop(self, why: str | OSError) -> None:
        """Write no more in this process, and say so once."""
        with self._lock:
            if self._writable:
                if isinstance(why, OSError):
                    why = f"{self._folder}: {why.strerror or why}"
                _say(f"{why}; JAXLLAMA_CACHE names another folder, {NO_CACHE}=1 does without")
            self._writable = False


def evict(root: Path, most_bytes: int) -> None:
    """Remove the files longest unread where all that lie in the folders below `root` are too much.

    Another process may be doing the same.
    """
    files = []
    # A link may lead to what is none of the cache's.
    folders = [folder for folder in root.glob("*") if not folder.is_symlink()]
    for path in (path for folder in folders for path in folder.glob("*")):
        with suppress(OSError):
            found = path.lstat()
            files.append((found.st_mtime_ns, found.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= most_bytes:
        return
    for _, size, path in sorted(files):
        if total <= most_bytes * _LEFT:
            break
        with suppress(OSError):
            path.unlink()
        total -= size
    for folder in root.glob("*"):
        with suppress(OSError):
            folder.rmdir()  # fails where something is left in it


def machine() -> str:
    """Return a folder's name: for what runs here, compiled as it would be compiled here."""
    import jax

    facts = {
        "versions": [jax.__version__, metadata.version("jaxlib")],
        "system": [platform.system(), platform.machine()],
        "processor": processor(),
        # XLA splits work by their number.
        "processors": [os.cpu_count(), _available()],
        "environment": environment(),
        "backend": jax.default_backend(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"jax-{jax.__version__}-{facts['backend']}-{digest[:16]}"


def processor() -> list[str]:
    """Return what tells the processors here from others; without Linux the machine's name, too."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    known = {line for line in lines if line.partition(":")[0].strip() in _PROCESSOR}
    return sorted(known) or list(platform.uname())


def environment() -> dict[str, str]:
    """Return the variables that change code, and what is in a file of XLA's flags."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PREFIXES) or name in _VARIABLES
    }
    flags = found.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):
        with suppress(OSError):
            found["XLA_FLAGS"] += "\n" + Path(flags).read_text(errors="replace")
    return found


def _available() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).digest()


def _say(why: str) -> None:
    print(f"note: what is compiled is not kept for the next run: {why}", file=sys.stderr)
