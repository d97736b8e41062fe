"""The command line as a whole: help without torch, one-line errors, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from launchers import command_table
from launchers import main as main_module
from launchers.command_table import COMMANDS, CommandEntry
from launchers.main import main
from megatron_longrope.errors import InputError, InterruptedRunError, MissingDependencyError
from megatron_longrope.version import __version__

ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def run_command_that(
    action: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Result:
    """Runs `longrope probe`, a subcommand that does `action`."""
    monkeypatch.setitem(COMMANDS, "probe", CommandEntry("A test's own."))
    monkeypatch.setattr(
        main_module.LongRopeGroup,
        "get_command",
        lambda self, ctx, name: click.command("probe")(action) if name == "probe" else None,
    )
    return CliRunner().invoke(main, ["probe", *arguments])


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_help_lists_every_command_and_imports_no_torch() -> None:
    done = run_python(
        "import sys\n"
        "from launchers.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr
    for name, entry in COMMANDS.items():
        assert f"\n  {name} " in done.stdout
        assert " ".join(entry.help.split()[:3]) in done.stdout


@pytest.mark.parametrize("words", [["factors", "list"], ["search", "--help"], ["eval", "--help"]])
def test_scaling_methods_and_published_factors_need_no_torch(words: list[str]) -> None:
    done = run_python(
        "import sys\n"
        "from launchers.main import main\n"
        f"try:\n    main({words})\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"longrope {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["report"],
        ["report", "--nonsense"],
        ["launch", "torchrun", "--nnodes", "x", "--", "data"],
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "--help" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("--target", "1k", "below the window"), 2),
        (InputError("text", "a\nb", "two\nlines"), 2),
        (MissingDependencyError("sbatch is not installed"), 2),
        (InterruptedRunError("stopped at step 7"), 75),
        (KeyboardInterrupt(), 75),
        (ModuleNotFoundError("No module named 'gguf'", name="gguf"), 2),
    ],
)
def test_what_is_no_bug_is_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_command_that(raising(error), monkeypatch)
    assert result.exit_code == code
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        ModuleNotFoundError("no", name="launchers.commands.gone"),
        OSError(28, "disk full"),
    ],
)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_command_that(raising(error), monkeypatch)
    assert result.exit_code == 1
    assert result.exception is error


def test_the_rank_is_named_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    result = run_command_that(raising(InputError("a", 1, "b")), monkeypatch)
    assert result.stderr == "[rank 3] a=1: b\n"


def test_a_return_value_is_no_exit_code_but_ctx_exit_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command_that(lambda: 5, monkeypatch).exit_code == 0
    assert run_command_that(lambda: click.get_current_context().exit(5), monkeypatch).exit_code == 5


def test_sigterm_stops_like_an_interrupt_and_the_handler_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    result = run_command_that(lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    assert result.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_child_dies_of_sigterm_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork_and_terminate() -> None:
        ready, tell_ready = os.pipe()  # Python drops signals that reach a child inside fork()
        child = os.fork()
        if child == 0:
            os.write(tell_ready, b".")
            for _ in range(500):
                time.sleep(0.01)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM

    assert run_command_that(fork_and_terminate, monkeypatch).exit_code == 0


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    line = f"{sys.executable} -m launchers.main --help | true"
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_every_command_of_the_table_has_its_module() -> None:
    for name in command_table.COMMANDS:
        assert (ROOT / "launchers" / "commands" / f"{name}.py").is_file(), name
