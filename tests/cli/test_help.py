"""Help of every verb: all of it there, in 80 columns."""

from collections.abc import Iterator

import click
import pytest
import typer

from ramify.cli import app


def verbs(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each visible command, by its name after `ramify`."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from verbs(inner, (*words, name))


ALL = dict(verbs(typer.main.get_command(app)))


def test_they_are_found() -> None:
    assert {("train",), ("bench", "step"), ("version",)} <= ALL.keys()


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument and option has a description, no text is truncated, lines are short."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    command = ALL[words]
    assert command.help
    without = [p.name for p in command.params if not isinstance(p, click.Argument) and not getattr(p, "help", None)]
    assert without == []
    with pytest.raises(SystemExit) as ended:
        app(args=[*words, "--help"], prog_name="ramify")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80
    for parameter in command.params:
        names = [parameter.name] if isinstance(parameter, click.Argument) else parameter.opts
        assert any(str(name) in said for name in names), parameter.name


@pytest.mark.parametrize("verb", ["relax", "md", "ipi", "predict", "eos", "phonons"])
def test_commands_that_use_a_branch_have_the_same_options(verb: str) -> None:
    names = {parameter.name for parameter in ALL[verb,].params}
    assert names >= {"model", "branch", "dataset", "checkpoint", "device", "precision", "dispersion"}
    assert names >= {"charge", "spin", "compiled", "form"}
