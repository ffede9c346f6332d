import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from warmgap import __version__
from warmgap.lab.cli import COMMANDS, main
from warmgap.lab.record import RunRecord, last_checkpoint

SENTENCES = [
    f"Line {number} tells of {number * 7919 % 1000} apples and {number * 104729 % 997} pears.\n"
    for number in range(1500)
]
SMALL = "--steps 8 --batch-size 4 --sequence-length 12 --eval-every 0 --eval-tokens 100 --save-every 2"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(SENTENCES))
    Path("empty.txt").touch()


def small(*more: str) -> list[str]:
    return ["train", "--corpus", "text.txt", *SMALL.split(), *more]


# ----------------------------------------------------------------------------------------------------------------- help


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"warmgap {__version__}"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: warmgap {command}".rstrip())
    assert "--debug" in text
    if not command:
        assert all(re.search(rf"^ +{name}\s", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(("command", "missing"), [("train", "safetensors"), ("theory", "rich"), ("demo", "rich")])
def test_a_missing_extra_is_one_sentence(command: str, missing: str) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None; from warmgap.lab.cli import main; sys.exit(main(['{command}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"warmgap: This command needs the package {missing}: pip install 'warmgap[lab]'.\n"


def test_train_help_tells_models_and_corpora(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "123,587,328" in text
    assert "CC BY-SA 4.0" in text
    assert "linear:STEPS" in text


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "The following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--learning-rate", "1"], "Unrecognized arguments: --learning-rate 1"),
        (["train", "--lr", "fast"], "invalid float value: 'fast'"),
        (["train", "--optimizer", "sgd"], "Unknown optimizer 'sgd': choose one of muon, lion"),
        (["train", "--lr", "-1"], "The peak learning rate must be a finite number above 0, got -1.0"),
        (["train", "--floor", "1.5"], "The floor must lie between 0 and 1"),
        (["train", "--sequence-length", "0"], "The sequence length must be a whole number of at least 1"),
        (["train", "--corpus", "no/such/text"], "Unknown corpus 'no/such/text'"),
        (["train", "--corpus", "empty.txt"], "Corpus 'empty.txt' holds no text"),
        (["train", "--corpus", "hf:owner"], "is named hf:owner/name"),
        (small("--batch-size", "60000"), "Corpus 'text.txt' is shorter than a batch"),
        (small("--batch-size", "4", "--accumulation", "3"), "must be a multiple of the accumulation"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("warmgap: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.endswith(".\n")
    assert not Path("runs").exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--corpus", "empty.txt"]
    assert main(["--debug", *words] if place == "before" else [*words, "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("warmgap: Corpus 'empty.txt' holds no text.\n")


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_run_and_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small("--rule", "linear:2", "--seed", "3")) == 0
    captured = capsys.readouterr()
    folder = Path("runs/tiny-muon-linear2-3")
    record = RunRecord.load(folder)
    assert captured.out.startswith(f"Validation loss {record.final_val_loss:.4f}, warm-up of 2 steps")
    assert captured.out.endswith(f"The record is in {folder}.\n")
    assert re.search(r"^step 8/8 decay loss \d\.\d{4} lr \S+ val \d\.\d{4}$", captured.err, re.MULTILINE)
    assert main(small("--rule", "linear:2", "--seed", "3")) == 2
    assert "already holds a run (done)" in capsys.readouterr().err


def test_a_run_that_diverges_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small("--optimizer", "lion", "--lr", "1e30", "--rule", "none", "--output", "wild")) == 0
    assert "Diverged at step" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bytes = Path.write_bytes
    written = []

    def filling(self: Path, data: Any) -> int:
        written.append(self)
        if len(written) > 3:
            write_bytes(self, bytes(data)[:100])
            raise OSError(28, "No space left on device", str(self))
        return write_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", filling)
        assert main(small("--output", "run")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("warmgap: The disk is full (run/checkpoint/")
    assert error.endswith("make room and run again with --resume; the last checkpoint is whole.")
    checkpoint = last_checkpoint(Path("run"))
    assert checkpoint is not None
    assert checkpoint.name == "step-00000002"
    assert len(list((Path("run") / "checkpoint").iterdir())) == 1
    assert main(small("--output", "run", "--resume")) == 0
    assert RunRecord.load(Path("run")).status == "done"


def test_an_output_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small("--output", "text.txt/run")) == 2
    assert re.fullmatch(r"warmgap: Not a directory \(.*\)\.\n", capsys.readouterr().err)


STOPPED = [*SMALL.split(), "--steps", "100", "--save-every", "5", "--threads", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not stopped."""
    home = tmp_path_factory.mktemp("whole")
    (home / "text.txt").write_text("".join(SENTENCES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("WARMGAP_CACHE", str(home / "cache"))
        assert main(["train", "--corpus", "text.txt", *STOPPED, "--output", "run"]) == 0
    return home / "run"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_process_leaves_a_run_that_ends_like_one_that_was_not(number: int, code: int, whole: Path) -> None:
    words = ["train", "--corpus", "text.txt", *STOPPED, "--output", "stopped"]
    command = [sys.executable, "-c", "import sys; from warmgap.lab.cli import main; sys.exit(main())", *words]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while last_checkpoint(Path("stopped")) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == code
    if code == 130:
        record = RunRecord.load(Path("stopped"))
        assert record.status == "interrupted"
        assert said == f"Interrupted after step {record.step}: run the same command with --resume to go on.\n"
        assert record.step < 100
    assert main([*words, "--resume"]) == 0
    for name in ("metrics.jsonl", "checkpoint/step-00000100/model.safetensors"):
        assert (Path("stopped") / name).read_bytes() == (whole / name).read_bytes()
