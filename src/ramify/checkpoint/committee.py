"""The folder of a committee: DIR/seeds.json and the runs DIR/seed-N of all its seeds (`ramify train --seeds`)."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.untrusted import has_file, parsed, regular_file

FILE = "seeds.json"


class _Seeds(BaseModel):
    """`seeds.json`."""

    model_config = ConfigDict(extra="forbid")
    version: int = Field(1, ge=1, le=1)
    seeds: list[int] = Field(min_length=1)


def run_of_seed(committee: Path, seed: int) -> Path:
    """The run directory of a seed."""
    return committee / f"seed-{seed}"


def write_seeds(committee: Path, seeds: Sequence[int]) -> None:
    """Writes `seeds.json` into the folder, which is created."""
    committee.mkdir(parents=True, exist_ok=True)
    write_json(committee / FILE, _Seeds(version=1, seeds=list(seeds)).model_dump())


def members_of(path: Path) -> list[Path]:
    """The runs of a committee; of any other path, the path itself.

    Raises:
        RamifyError: `seeds.json` is damaged, or a seed has no checkpoint yet.
    """
    if not has_file(path, FILE):
        return [path]
    content = parsed(_Seeds, read_json(regular_file(path, FILE)), path / FILE)
    members = [run_of_seed(path, seed) for seed in content.seeds]
    for member in members:
        if not (member / "checkpoints").is_dir() or not any((member / "checkpoints").iterdir()):
            raise RamifyError(
                f"{path} is a committee of {len(members)} seeds, and {member.name} is not trained yet",
                fix="repeat the command that trains it with --continue, or name some of its runs",
            )
    return members


def refuse_committee(path: Path) -> None:
    """Refuses the folder of a committee where one model is needed.

    Raises:
        RamifyError: it is the folder of a committee.
    """
    if has_file(path, FILE):
        runs = ", ".join(str(p) for p in sorted(path.glob("seed-*")))
        raise RamifyError(f"{path} is a committee, and this command takes one model", fix=f"name one of: {runs}")
