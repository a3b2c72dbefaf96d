"""Fixtures shared by all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start programs in the background: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as `nohup` starts programs
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.fsync = lambda handle: None  # no test loses power, and waiting for the disk took a third of the time
os.environ.pop("COLUMNS", None)  # rich would keep the width that it is imported with; pytest-xdist hands one on
# programs of this environment: mpiexec comes in the wheel of mpich
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real extracts beside the checkout (or `RAMIFY_SHARED`); tests that need it skip without it."""
    folder = Path(os.environ.get("RAMIFY_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real extracts are not at {folder} (set RAMIFY_SHARED to their folder)")
    return folder
