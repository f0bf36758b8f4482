"""The command ``trine``: results on stdout, logs on stderr, a code to exit with."""

import importlib
import sys
from importlib.metadata import entry_points, version
from typing import Any

import click

from trine.errors import DeadlineError, NotFoundError, TrineError, UsageError

_BUILT_IN = {
    "up": "trine.cli.up:up",
    "serve": "trine.cli.serve:serve",
    "call": "trine.cli.call:call",
    "ls": "trine.cli.ls:ls",
    "state": "trine.cli.state:state",
    "trigger": "trine.cli.trigger:trigger",
    "job": "trine.cli.job:job",
    "queue": "trine.cli.queue:queue",
    "dlq": "trine.cli.dlq:dlq",
    "top": "trine.cli.top:top",
    "trace": "trine.cli.trace:trace",
    "doctor": "trine.cli.doctor:doctor",
}


class _Commands(click.Group):
    """Commands are imported when they are used: ``trine --help`` starts at once."""

    def _known(self) -> dict[str, str]:
        installed = {entry.name: entry.value for entry in entry_points(group="trine.commands")}
        return {**installed, **_BUILT_IN}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(self._known())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        target = self._known().get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("trine"), prog_name="trine")
def trine() -> None:
    """Event-driven functions and triggers on NATS, and the research loop that runs on them.

    A server is found by --nats, TRINE_NATS, or the system that `trine up` runs in this directory.

    Shell completion: eval "$(_TRINE_COMPLETE=bash_source trine)", or zsh_source, fish_source.
    """


def main() -> None:
    """Run the command line; every error is one line and an exit code."""
    try:
        trine.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseExceptionGroup as group:
        fail(group)
    except TrineError as error:
        fail(error)


def fail(error: BaseException) -> None:
    """Print the first `TrineError` in *error* as one line and exit with its code."""
    first = _first(error)
    if first is None:
        raise error
    line = " ".join(first.message.split())
    click.echo(f"error: {line} ({first.code})", err=True)
    sys.exit(exit_code(first))


def _first(error: BaseException) -> TrineError | None:
    if isinstance(error, TrineError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            if (found := _first(one)) is not None:
                return found
    return None


def exit_code(error: TrineError) -> int:
    """1 failed, 2 used wrongly, 3 not found, 4 out of time."""
    if isinstance(error, UsageError):
        return 2
    if isinstance(error, NotFoundError):
        return 3
    if isinstance(error, DeadlineError):
        return 4
    return 1


__all__: list[Any] = ["exit_code", "fail", "main", "trine"]
