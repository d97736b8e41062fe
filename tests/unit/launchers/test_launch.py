"""What `longrope launch` prints is what runs: quoted, validated, and the Slurm script stops and
requeues as it says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from launchers.jobs import slurm as slurm_module
from launchers.jobs.job import Job
from launchers.jobs.slurm import SlurmOptions, slurm_script, time_limit_seconds
from launchers.jobs.torchrun import TorchrunOptions, torchrun_job
from launchers.main import main
from megatron_longrope.errors import InputError, MissingDependencyError

HOSTILE = [
    "a b.yaml",
    "$(touch hacked)",
    "`id`",
    "a'b\"c",
    "line\nbreak",
    "; rm -rf x",
    "--set=a=*",
    "\\",
    "#SBATCH --x",
]
EXTEND = ("extend", *HOSTILE)


def launch(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["launch", *arguments])


def shell_words(text: str) -> list[str]:
    """Returns the words bash itself makes of `text`."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_a_torchrun_line_is_read_back_by_bash_word_for_word() -> None:
    job = torchrun_job(TorchrunOptions(nproc_per_node=4), EXTEND)
    words = shell_words(job.shell_line())
    assert words[0] == "CUDA_DEVICE_MAX_CONNECTIONS=1"
    assert words[len(job.environment) :] == list(job.argv)
    assert job.argv[-len(EXTEND) :] == EXTEND
    assert job.argv[:3] == (sys.executable, "-m", "launchers.jobs.elastic")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=5)
)
def test_any_argument_survives_the_shell(arguments: list[str]) -> None:
    assert shlex.split(Job(("longrope", *arguments), {"A": "b c"}).shell_line()) == [
        "A=b c",
        "longrope",
        *arguments,
    ]


def test_several_machines_need_a_meeting_place() -> None:
    with pytest.raises(InputError, match="--rdzv-endpoint"):
        torchrun_job(TorchrunOptions(nproc_per_node=8, nnodes=2), ["train"])
    line = torchrun_job(TorchrunOptions(8, 2, "node1:29500"), ["train"]).shell_line()
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:29500" in line
    assert "--standalone" not in line


@pytest.mark.parametrize(
    "options",
    [
        TorchrunOptions(0),
        TorchrunOptions(1, 0),
        TorchrunOptions(1, 2, "node1"),
        TorchrunOptions(1, 2, "node1:99999"),
        TorchrunOptions(1, 2, "$(id):1"),
        TorchrunOptions(1, 1, "node1:29500"),
        TorchrunOptions(1, 2, "node1:1", "a b"),
    ],
)
def test_wrong_torchrun_options(options: TorchrunOptions) -> None:
    with pytest.raises(InputError):
        torchrun_job(options, ["train"])


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("launch", "slurm"), ("data", "pack"), ("convert",)]
)
def test_commands_that_cannot_spread_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="ARGS"):
        torchrun_job(TorchrunOptions(2), arguments)


def test_one_process_may_run_anything() -> None:
    assert torchrun_job(TorchrunOptions(1), ("convert", "verify")).argv[-2:] == (
        "convert",
        "verify",
    )


def test_submit_becomes_the_job_with_its_exit_code(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nprintf "%s|" "$MARK" "$@"\nexit 75\n')
    program.chmod(0o755)
    code = (
        f"from launchers.jobs.job import Job\nJob(({str(program)!r}, 'a b', '$x'), "
        f"{{'MARK': 'm m'}}).replace_process()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    assert (done.returncode, done.stdout) == (75, "m m|a b|$x|")


def test_a_missing_starter_is_named() -> None:
    with pytest.raises(MissingDependencyError, match="no-such-starter"):
        Job(("no-such-starter",)).replace_process()


def test_the_command_prints_and_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "launch.json"
    result = launch(
        "torchrun", "--nproc-per-node", "2", "--json", str(path), "--", "train", "--steps", "3"
    )
    assert result.exit_code == 0, result.stderr
    written = json.loads(path.read_text())
    assert (
        shlex.split(result.stdout)[-4:]
        == written["argv"][-4:]
        == ["launchers.main", "train", "--steps", "3"]
    )
    assert written["submitted"] is False
    assert launch("torchrun", "--nproc-per-node", "2", "--").exit_code == 2


# Slurm


def script(*arguments: str, folder: Path, **options: object) -> str:
    chosen = {"time": "24:00:00", "nodes": 2, "log_dir": folder, **options}
    return slurm_script(SlurmOptions(**chosen), arguments or EXTEND, folder)  # type: ignore[arg-type]


def test_the_script_is_bash_and_complete(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    setup = folder / "set up.sh"
    setup.write_text("")
    text = slurm_script(
        SlurmOptions("1-00:00:00", 2, log_dir=tmp_path, setup=setup), EXTEND, folder
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    directives = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("#SBATCH")]
    assert text.startswith("#!/bin/bash\n#SBATCH --requeue\n")
    for wanted in (
        "nodes=2",
        "ntasks-per-node=1",
        "gpus-per-node=8",
        "signal=B:USR1@300",
        "time=1-00:00:00",
    ):
        assert f"#SBATCH --{wanted}" in directives
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" in text
    assert f"cd -- {shlex.quote(str(folder))} ||" in text
    assert shlex.join(EXTEND) in text


@pytest.mark.parametrize(
    "options",
    [
        {"time": "tomorrow"},
        {"time": "00:04:00"},
        {"nodes": 0},
        {"gpus_per_node": -1},
        {"gpus_per_node": 0},
        {"nproc_per_node": -2},
        {"job_name": "a b"},
        {"job_name": "x\n#SBATCH --account=other"},
        {"partition": "$(id)"},
        {"account": ""},
        {"log_dir": Path("gone")},
        {"setup": Path("gone.sh")},
        {"stop_before": 0},
        {"max_requeues": -1},
    ],
)
def test_wrong_slurm_options(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        script("train", folder=tmp_path, **options)


def test_a_log_folder_that_slurm_would_misread_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    with pytest.raises(InputError, match="--log-dir"):
        script("train", folder=folder)


def test_time_limits() -> None:
    assert time_limit_seconds("01:02:03") == 3723
    assert time_limit_seconds("2-00:00:01") == 172801


def test_sbatch_gets_the_script_and_its_answer_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_programs(tmp_path, monkeypatch, sbatch='cat > "$0.got"; echo "417;cluster"')
    monkeypatch.chdir(tmp_path)
    result = launch("slurm", "--time", "24:00:00", "--submit", "--json", "out.json", "--", "train")
    assert result.exit_code == 0, result.stderr
    assert "submitted job 417" in result.stderr
    assert (tmp_path / "sbatch.got").read_text() == result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["job_id"] == "417"
    fake_programs(tmp_path, monkeypatch, sbatch='echo "invalid\npartition" >&2; exit 1')
    refused = launch("slurm", "--time", "24:00:00", "--submit", "--", "train")
    assert refused.exit_code == 1
    assert refused.stderr == "sbatch refused the job: invalid partition\n"


def test_no_sbatch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="sbatch"):
        slurm_module.submit("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (75, 0, True), (75, 20, False)],
)
def test_only_a_resumable_end_is_requeued(
    code: int, restarts: int, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_script(tmp_path, monkeypatch, srun=f"exit {code}", restarts=restarts)
    assert process.wait(timeout=20) == code
    assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize("code", [75, 0])
def test_usr1_reaches_the_step_and_the_script_waits_for_it(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step takes half a second to save after the signal: the script neither dies nor answers
    before it."""
    save = f'sleep 0.5; echo saved > "{tmp_path}/saved"; exit {code}'
    srun = f"trap '{save}' USR1; touch '{tmp_path}/up'; while :; do sleep 0.1; done"
    process = start_script(tmp_path, monkeypatch, srun=srun)
    deadline = time.monotonic() + 20
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(10)
    assert process.wait(timeout=20) == code
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").exists() == (code == 75)


def start_script(
    folder: Path, monkeypatch: pytest.MonkeyPatch, srun: str, restarts: int = 0
) -> subprocess.Popen[bytes]:
    """Starts the batch script with stand-ins for Slurm's programs: they do what the test says and
    leave marks."""
    scontrol = f'if [ "$1" = requeue ]; then touch "{folder}/requeued"; else echo node1; fi'
    fake_programs(folder, monkeypatch, srun=srun, scontrol=scontrol)
    path = folder / "job.sh"
    path.write_text(script("train", folder=folder))
    slurm_variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    return subprocess.Popen(
        ["bash", str(path)], env={**os.environ, **slurm_variables}, stdout=subprocess.DEVNULL
    )


def fake_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **bodies: str) -> None:
    for name, body in bodies.items():
        program = folder / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    if str(folder) not in os.environ["PATH"].split(os.pathsep):
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
