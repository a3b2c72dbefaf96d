"""The shared secret of the processes of a run, and message signatures.

Without it, any program that reaches the port of a run could act as one of its ranks. The secret is never sent.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ramify.errors import RamifyError
from ramify.parallel.startup.launch import JOB, LaunchEnv

VARIABLE = "RAMIFY_SECRET"
"""Variable with a text that a user sets for all processes of a run, as the job scripts in `examples/slurm` do."""


class Secret:
    """Signs and verifies messages.

    Args:
        source: origin of the secret, for error messages.
        content: the secret itself.
        is_private: whether other users of the machines cannot read it.
    """

    def __init__(self, source: str, content: str, *, is_private: bool = True) -> None:
        self.source, self.is_private = source, is_private
        self._key = hashlib.sha256(content.encode()).digest()

    def sign(self, *parts: object) -> str:
        """The signature of a message (HMAC-SHA256)."""
        return hmac.new(self._key, json.dumps(parts).encode(), hashlib.sha256).hexdigest()

    def has_signed(self, signature: object, *parts: object) -> bool:
        """Whether `signature` is the signature of this message."""
        return isinstance(signature, str) and hmac.compare_digest(signature.encode(), self.sign(*parts).encode())


def find_secret(launch_env: LaunchEnv, environ: Mapping[str, str] = os.environ) -> Secret:
    """The secret of the run that this process belongs to.

    `RAMIFY_SECRET` where it is set; under torchrun the id of the run, which is random with `--standalone`; on one node
    a file that only this user can read. On several nodes without either, the identifiers of the job: they separate
    runs, but do not protect against other programs.

    Raises:
        RamifyError: others could read or replace the file.
    """
    if environ.get(VARIABLE):
        return Secret(VARIABLE, environ[VARIABLE])
    run = environ.get("TORCHELASTIC_RUN_ID", "")
    if launch_env.launcher == "torchrun" and run not in ("", "none"):  # torchrun's own default
        return Secret("TORCHELASTIC_RUN_ID", run)
    if launch_env.one_node:
        path, content = _of_user()
        return Secret(str(path), content)
    return Secret("the identifiers of the job", "/".join(environ.get(name, "") for name in JOB), is_private=False)


def _of_user() -> tuple[Path, str]:
    """This user's secret on this machine: created by the first process that needs it."""
    user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"ramify-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != user or about.st_mode & 0o077:
        raise RamifyError(
            f"{folder} must be a folder that belongs to user {user} and that no other user can enter: it holds the "
            "secret by which the ranks of a run authenticate each other",
            fix=f"remove it, or set {VARIABLE} to the same random text for all ranks",
        )
    path, mine = folder / "secret", folder / f".{os.getpid()}"
    if not path.exists():
        with os.fdopen(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(mine, path)  # atomic: of several processes, the first succeeds
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path, path.read_text(encoding="ascii")
