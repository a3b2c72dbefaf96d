"""The pages of the documentation: their blocks, and how to execute them."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch

from ramify import cli

ROOT = Path(__file__).parents[2]


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


class Step(NamedTuple):
    """A block that was executed: its output, and the block below it on the page (None for the last)."""

    block: Block
    said: str
    below: Block | None


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(language, text) for language, text in found]


def lines(block: Block) -> list[str]:
    """The commands of a shell example; a backslash joins a line with the next."""
    return block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else []


def walk(page: str, folder: Path, skip: Callable[[Block], object] = lambda block: False) -> list[Step]:
    """Executes the blocks of a page in `folder`, except for those to `skip`."""
    found = blocks(ROOT / page)
    with _reader_at(folder):
        return [
            Step(block, follow(block), below)
            for block, below in zip(found, [*found[1:], None], strict=True)
            if not skip(block)
        ]


def printed(steps: list[Step]) -> list[tuple[str, str]]:
    """Output of every Python block, and the text block below it, for those that have one."""
    return [
        (step.said, step.below.text)
        for step in steps
        if step.block.language == "python" and step.below is not None and step.below.language == "text"
    ]


@contextlib.contextmanager
def _reader_at(folder: Path) -> Iterator[None]:
    """A reader of a page in an empty folder, with the package installed, before a terminal of 120 columns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small are slower on several, and far slower where cores are shared
    try:
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("COLUMNS", "120")
            yield
    finally:
        torch.set_num_threads(threads)


def follow(block: Block) -> str:
    """Executes a block and returns its output; a YAML block that names its file is written to that file."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if block.language == "python":
            exec(compile(block.text, "a page", "exec"), {"__name__": "__main__"})
        elif block.language == "bash":
            for line in lines(block):
                out.write(shell(line))
        elif named := re.match(r"# ([\w.-]+\.yaml)\n", block.text):
            Path(named[1]).write_text(block.text, encoding="utf-8")
    return out.getvalue()


def shell(line: str) -> str:
    """Runs one line; ramify's verbs in this process, where its libraries are loaded already."""
    words = shlex.split(line)
    if words[:1] != ["ramify"]:
        return subprocess.run(["bash", "-euc", line], check=True, capture_output=True, text=True).stdout
    if words[1:3] == ["demo", "--quick"] and not any(Path().iterdir()):
        made, said = demo(line)
        shutil.copytree(made.name, Path(), symlinks=True, dirs_exist_ok=True)
        return said
    return verb(line)


@cache
def demo(line: str) -> tuple[TemporaryDirectory[str], str]:
    """The demo that several pages begin with, run once: the folder with its results, whose path is in no file but the
    log of sessions, and its output."""
    made = TemporaryDirectory(prefix="ramify-demo-")
    with contextlib.chdir(made.name):
        said = verb(line)
    for path in Path(made.name).rglob("*"):
        if path.is_file() and path.name != "sessions.jsonl":
            assert made.name.encode() not in path.read_bytes(), path
    return made, said


def verb(line: str) -> str:
    """Runs one of the verbs; returns its output."""
    words = shlex.split(line)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code, f"{line}: exit status {end.value.code}\n{out.getvalue()}"
    return out.getvalue()
