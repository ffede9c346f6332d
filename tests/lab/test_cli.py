from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from warmgap.lab import cli
from warmgap.lab.cli import main
from warmgap.lab.config import TrainConfig
from warmgap.lab.store import Store


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_example_that_is_right(capsys: pytest.CaptureFixture[str], command: str) -> None:
    example = f"Example: warmgap {command}"
    text = help_of(capsys, command)
    assert example in " ".join(text.split())
    words = (cli.COMMANDS[command].__doc__ or "").partition("Example: warmgap ")[2].partition("\n")[0].split()
    assert isinstance(cli.parse(words), cli.COMMANDS[command])


def test_the_help_of_train_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "train")
    for group in ("schedule options", "optimizer options", "data options", "run options"):
        assert group in text
    for flag in ("--betas", "--momentum", "--sigma", "--level", "--second-lr", "--rule", "--method"):
        assert flag in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("bake", "warmgap: Unrecognized options: bake"),
        ("train --never-heard-of", "--never-heard-of"),
        ("paper", "What is missing: A folder of recipes: 2602.05813 or 2510.03164: see warmgap paper --help."),
        ("train --steps x", "invalid literal for int"),
        ("train --tied maybe", "warmgap: Invalid choice 'maybe' for argument '--tied'"),
        ("train --method foo", "Unknown method 'foo'"),
        ("train --optimizer foo", "Unknown optimizer 'foo'"),
        ("sweep --methods", "has no method"),
        ("sweep --jobs 0", "The number of jobs must be at least 1"),
        ("report nowhere", "There is no folder nowhere"),
        ("runs nowhere", "holds no runs"),
        ("bench --suite nothing", "There is no recipe 'suites/nothing'"),
        ("bench --suite mini --workloads foo", "Unknown workload 'foo'"),
        ("bench --report nowhere.json", "There is no nowhere.json"),
        ("paper 1234.5", "There are no recipes of '1234.5'"),
        ("paper 2602.05813 --row lion-124m-32 --scale 2", "The scale is a share such as 1/100"),
        ("smoothness nowhere", "There is no nowhere"),
        ("smoothness --rates 0", "different factors above 0"),
        ("smoothness --rates", "nothing to train: give at least one rate"),
        ("sweep --rates 1/0", "Error parsing --rates"),
        ("train --corpus nowhere", "Unknown corpus 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words.split())
    assert code == 2
    assert sentence in err
    told = [line for line in err.splitlines() if line.startswith("warmgap: ")]
    assert len(told) == 1
    assert told[0].endswith(".")
    assert "Traceback" not in err


def test_a_run_that_never_began_does_not_block_its_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: TrainConfig
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.json").write_text('{"runs": [')
    assert run(capsys, "train", *images.words(), "--start-from", "nowhere", "--output", "run")[0] == 2
    assert run(capsys, "train", *replace(images, batch_size=3_000).words(), "--output", "run")[0] == 2
    assert run(capsys, "train", *images.words(), "--output", "run")[0] == 0
    assert "holds no results" in run(capsys, "report", "report.json")[2]


def test_debug_shows_where_a_mistake_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "--method", "foo", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "warmgap")


def test_train_says_how_it_went_and_what_to_type_next(
    capsys: pytest.CaptureFixture[str], images: TrainConfig, tmp_path: Path
) -> None:
    words = ["train", *replace(images, floor=0.02).words(), "--rule", "linear:20%", "--output", str(tmp_path / "run")]
    code, out, err = run(capsys, *words)
    assert code == 0
    assert err.splitlines()[0] == "--floor changes nothing: linear:20% starts where its shape says."
    assert err.splitlines()[1].startswith("lion on digits, model mlp, method linear:20%, 10 steps")
    assert out.startswith("Validation loss ")
    assert "warm-up of 2 steps" in out
    assert out.splitlines()[-1] == f"Next: warmgap report {tmp_path / 'run'}"
    assert run(capsys, *words)[0] == 2  # it is there already
    assert run(capsys, *words, "--resume")[:2] == (0, out)
    other = run(capsys, *[word if word != "linear:20%" else "none" for word in words])
    assert other[0] == 2
    assert "belongs to a run with other settings" in other[2]
    code, out, _ = run(capsys, "runs", str(tmp_path / "run"))
    assert "done" in out


def test_a_diverged_run_does_not_exit_with_0(
    capsys: pytest.CaptureFixture[str], images: TrainConfig, tmp_path: Path
) -> None:
    words = replace(images, optimizer="lion", lr=1e30, method="none").words()
    code, out, _ = run(capsys, "train", *words, "--output", str(tmp_path / "run"))
    assert code == 1
    assert out.startswith("Diverged at step ")


def test_a_rule_that_refuses_is_told(capsys: pytest.CaptureFixture[str], images: TrainConfig, tmp_path: Path) -> None:
    words = replace(images, method="published", target_loss=9.0, floor=0.01).words()
    code, _, err = run(capsys, "train", *words, "--output", str(tmp_path / "run"))
    assert code == 2
    assert "warmgap: The published rule needs a target loss well below the first loss" in err


def test_the_first_line_comes_within_a_second(tmp_path: Path) -> None:
    program = "import sys; from warmgap.lab.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", program, "train", "--corpus", "digits", "--model", "mlp"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    loaded = []
    for line in process.stderr:
        if line.startswith("muon on digits"):
            break
        loaded.append(line.rpartition("|")[2].strip())
    process.kill()
    process.communicate()
    # What takes seconds to load is not loaded before the first line.
    assert "tyro" in loaded
    assert not {"torch", "transformers", "scipy", "matplotlib"} & set(loaded)


def test_theory_prints_its_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import itertools

    from warmgap import theory

    rows = list(itertools.islice(theory.check_all(), 4))
    monkeypatch.setattr(theory, "check_all", lambda: iter(rows))
    code, out, _ = run(capsys, "theory")
    assert code == 0
    assert "4 checks, 0 failed." in out
    monkeypatch.setattr(theory, "check_all", lambda: iter([replace(rows[0], bound=-1.0, relation="<=", excess=1.0)]))
    assert run(capsys, "theory")[0] == 1


def test_losses_are_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: TrainConfig
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("losses.csv").write_text("step,loss\n" + "".join(f"{step},{5.0 * 0.98**step}\n" for step in range(100)))
    rules = ("auto", "loss-ratio,level=3@all", "gap,kappa=10,target=1", "gap,kappa=10,target=3")
    code, out, _ = run(capsys, "replay", "losses.csv", "--rules", *rules)
    assert code == 0
    assert "auto: warm-up of 0 steps" in out
    assert "loss-ratio,level=3@all: warm-up of " in out
    ends = re.findall(r"gap,kappa=10,target=(\d): warm-up of (\d+) steps", out)
    assert [target for target, _ in ends] == ["1", "3"]
    assert ends[0][1] != ends[1][1]  # each is shown with its own target
    assert Path("replay.html").read_text().count('draw("') == 1
    assert run(capsys, "train", *images.words(), "--output", "run")[0] == 0
    assert run(capsys, "replay", "run")[0] == 0
    for words, sentence in (
        (("nowhere",), "owhere"),
        (("losses.csv", "--rules", "none"), "schedule by step count"),
        (("losses.csv", "--rules", "gap"), "write gap,kappa=NUMBER"),
    ):
        code, _, err = run(capsys, "replay", *words)
        assert code == 2
        assert sentence in err


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_from_curvature_to_gluons_radii(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, images: TrainConfig
) -> None:
    radii = str(tmp_path / "radii.json")
    own = replace(images, optimizer="gluon", steps=20, method="none", batch_size=64).words()
    words = ["--rates", "1/2", "--write-radii", radii, "--output", str(tmp_path / "measured")]
    code, out, _ = run(capsys, "smoothness", *own, *words)
    assert code == 0
    assert f"Next: warmgap train --optimizer gluon --radii {radii}" in out
    assert run(capsys, "train", *own, "--radii", radii, "--output", str(tmp_path / "run"))[0] == 0
    with Store(tmp_path / "run", create=False) as store:
        config = store.runs()[0].config
    assert config["lr"] == 1.0
    assert len(config["radii"]) == 16
    assert "has no radii" in run(capsys, "train", *images.words(), "--radii", radii)[2]
    assert "There is no file nowhere" in run(capsys, "train", *own, "--radii", "nowhere")[2]


def test_the_unified_assumption_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, images: TrainConfig
) -> None:
    own = replace(images, optimizer="sgd", method="none").words()
    words = ["--every", "2", "--seeds", "0", "1", "--output", str(tmp_path)]
    code, out, _ = run(capsys, "unified", *own, *words)
    assert code == 0
    assert re.search(r"loss gap +10 +0.1 ", out)
    assert (tmp_path / "unified-gradient.png").exists()
    assert len(json.loads((tmp_path / "seed-1" / "unified.json").read_text())["gap"][0]) == 5
    assert run(capsys, "unified", *own, *words)[:2] == (0, out)  # nothing is trained again
    assert "give a smaller --every" in run(capsys, "unified", *own, "--every", "10")[2]
