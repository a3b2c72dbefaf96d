"""The folder of compiled steps beside the stores, in which one process compiles a program and the others load it."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.files import cache_folder, create_whole, read_json, write_json

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the cache folder of PyTorch's compiler; a value set by the user is kept."""


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """Measurements of a compiled step.

    Attributes:
        compile: seconds of its compilation; None where it was never compiled.
        load: seconds until a later process had loaded it from the cache; None where none has.
        ratio: time of a compiled step divided by that of a plain one; None where it was not measured.
    """

    compile: float | None = None
    load: float | None = None
    ratio: float | None = None


class ProgramCache:
    """The cache folder of one program; sets it for PyTorch's compiler in this process.

    Args:
        stores: folder of the stores.
        key: name of the program, `ramify.model.compiled.program_key`.
    """

    def __init__(self, stores: Path, key: str) -> None:
        self.folder = _folder(stores)
        self._key = key
        if self.folder is not None:
            os.environ[VARIABLE] = str(self.folder)

    def cost(self) -> ProgramCost:
        """Measurements of this program; empty where it is not in the cache."""
        return ProgramCost() if self.folder is None else _read(self._record(self.folder))

    def similar(self) -> ProgramCost:
        """The latest measurements of another program in the cache; empty where there is none."""
        found = [] if self.folder is None else sorted(self.folder.glob("step-*.json"), key=_age, reverse=True)
        return next((cost for path in found if (cost := _read(path)).compile), ProgramCost())

    def note(self, **measured: float) -> None:
        """Keeps measurements (fields of `ProgramCost`) beside the program."""
        if self.folder is not None:
            with suppress(OSError, RamifyError):  # an estimate for later runs only
                write_json(self._record(self.folder), asdict(self.cost()) | measured)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """The program is compiled inside, and its time is kept. Of the processes that share the folder, the first one
        compiles while the others wait; then they all load the program."""
        with self._alone():
            began, known = time.perf_counter(), self.cost().compile is not None
            if not known:
                yield
                self.note(compile=time.perf_counter() - began)
        if known:
            began = time.perf_counter()
            yield
            self.note(load=time.perf_counter() - began)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other process compiles this program; without effect on file systems that have no locks."""
        if self.folder is None:
            yield
            return
        with (self.folder / f"step-{self._key}.lock").open("a") as handle:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _record(self, folder: Path) -> Path:
        return folder / f"step-{self._key}.json"


def _folder(stores: Path) -> Path | None:
    """The folder of compiled programs: `TORCHINDUCTOR_CACHE_DIR`; beside the stores; in the cache folder of the user
    where the stores are read-only or programs there cannot be executed; None where that one cannot be written either.

    Programs are code, and stores may come from other people. So the folder beside the stores has a random name, which
    is kept in the cache folder of the user: a folder of programs that came with the stores is never used.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # when it is imported, PyTorch's compiler sets the variable to its default, a folder that is lost with /tmp
    if (given := os.environ.get(VARIABLE)) and Path(given) != Path(default_cache_dir()).absolute():
        Path(given).mkdir(parents=True, exist_ok=True)
        return Path(given)
    own = cache_folder()
    try:
        own.mkdir(parents=True, exist_ok=True)
        create_whole(own / "token", secrets.token_hex(8))
        token = (own / "token").read_text(encoding="ascii")
    except (OSError, RamifyError):
        return None
    for folder in (stores.absolute() / f".compiled-{token}", own.absolute() / "steps"):
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & os.ST_NOEXEC:
                return folder
    return None


def _read(path: Path) -> ProgramCost:
    try:
        found: dict[str, Any] = read_json(path)
        return ProgramCost(**{name: found.get(name) for name in ("compile", "load", "ratio")})
    except (RamifyError, AttributeError):
        return ProgramCost()


def _age(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
