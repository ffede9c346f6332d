from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from warmgap.lab import corpus
from warmgap.lab.corpus import Sampler, Shards, load_tokens, permuted
from warmgap.lab.errors import UserError


def all_of(tokens: Shards) -> NDArray[np.int64]:
    found: NDArray[np.int64] = tokens.windows(np.array([0]), len(tokens))[0]
    return found


def decoded(tokens: Shards) -> str:
    return bytes(int(token) for token in all_of(tokens) if token < 256).decode()


def folder_of(path: Path, texts: dict[str, str]) -> Path:
    path.mkdir(parents=True)
    for name, text in texts.items():
        (path / name).write_text(text)
    return path


TEXTS = {f"{n}.txt": f"Document {n} is about {n * 31 % 101}.\n" * 9 for n in range(60)}


def test_bytes_split_by_document_once_each(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "a", {**TEXTS, "again.txt": TEXTS["3.txt"], "empty.txt": " ", ".hidden": "no"})
    (place / "binary.txt").write_bytes(b"\0\1")
    tokens = load_tokens(str(place), 257)
    assert tokens.vocab_size == 257
    train, held_out = decoded(tokens.train), decoded(tokens.validation)
    assert len(train) + len(held_out) == sum(map(len, TEXTS.values()))
    assert all((text in train) != (text in held_out) for text in TEXTS.values())
    assert sum(text in held_out for text in TEXTS.values()) == 3
    # Names and order of the files do not matter to the split.
    other = load_tokens(
        str(folder_of(tmp_path / "b", {f"x{name}": text for name, text in reversed(TEXTS.items())})), 257
    )
    assert decoded(other.validation) != ""
    assert {t for t in TEXTS.values() if t in decoded(other.validation)} == {t for t in TEXTS.values() if t in held_out}


def test_tokens_are_made_once_and_again_where_they_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Path
) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path))
    first = load_tokens(str(text), 300)
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == "trained BPE"
    assert manifest["tokens"] == {"train": len(first.train), "validation": len(first.validation)}
    assert first.verify()
    assert str(text.parent) not in (first.folder / "manifest.json").read_text()  # nothing of the machine
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_build", lambda *_: pytest.fail("they were made again"))
        assert load_tokens(str(text), 300).fingerprint == first.fingerprint
    shard = first.folder / manifest["shards"]["train"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-2])
    assert not first.verify()
    assert load_tokens(str(text), 300).verify()


def test_many_shards_give_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    one = load_tokens(str(text), 300)
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus, "_SHARD", 1_000)
    monkeypatch.setattr(corpus, "_CHUNK", 2_000)
    many = load_tokens(str(text), 300)
    assert len(many.train.files) > 10
    assert np.array_equal(all_of(one.train), all_of(many.train))
    assert np.array_equal(all_of(one.validation), all_of(many.validation))
    starts = np.array([0, 998, 2_500])
    assert np.array_equal(many.train.windows(starts, 1_500), all_of(one.train)[starts[:, None] + np.arange(1_500)])


def test_a_dataset_is_streamed_up_to_so_many_megabytes(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps({"text": t * 20}) + "\n" for t in TEXTS.values()))
    whole = load_tokens(f"hf:{data}", 257)
    part = load_tokens(f"hf:{data}", 257, megabytes=0.05)
    assert 40_000 < len(part.train) + len(part.validation) < 60_000 < len(whole.train)
    shutil.rmtree(data)
    (data).mkdir()
    (data / "train.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    with pytest.raises(UserError, match="no column 'text' of strings, but body"):
        load_tokens(f"hf:{data}", 257, megabytes=1.0)


def test_a_tokenizer_from_files(tmp_path: Path, text: Path) -> None:
    trained = load_tokens(str(text), 300)
    Tokenizer.from_file(str(trained.folder / "tokenizer.json")).model.save(str(tmp_path))  # vocab.json, merges.txt
    for place in (trained.folder / "tokenizer.json", trained.folder, tmp_path):
        again = load_tokens(str(text), 257, tokenizer=str(place))
        assert again.vocab_size == 300
        assert np.array_equal(all_of(again.train), all_of(trained.train))
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    with pytest.raises(UserError, match=r"nor a folder with one or with vocab.json and merges.txt"):
        load_tokens(str(text), 257, tokenizer=str(tmp_path))
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")  # as GPT-2's release names them
    assert load_tokens(str(text), 257, tokenizer=str(tmp_path)).fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("nowhere", 257, "Unknown corpus 'nowhere'"),
        ("hf:one", 257, "is named hf:owner/name"),
        ("wiki", 100, "must be at least 257"),
    ],
)
def test_a_mistake_is_one_sentence(name: str, size: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_tokens(name, size)


def test_too_little_text(tmp_path: Path, text: Path) -> None:
    (tmp_path / "one.txt").write_text("One line.\n")
    (tmp_path / "bad.txt").write_bytes(b"abc\xff\xfe")
    for name, size, sentence in (("one.txt", 257, "too little text"), ("bad.txt", 257, r"not UTF-8 text \(byte 3\)")):
        with pytest.raises(UserError, match=sentence):
            load_tokens(str(tmp_path / name), size)
    with pytest.raises(UserError, match="too short for a vocabulary of 60000"):
        load_tokens(str(text), 60_000)
    with pytest.raises(UserError, match=r"is no tokenizer.json here"):
        load_tokens(str(text), 257, tokenizer=str(text))


@pytest.mark.parametrize("count", [1, 2, 14, 100, 4097])
def test_the_order_is_a_permutation(count: int) -> None:
    keys = np.random.default_rng(0).integers(2**32, size=4, dtype=np.uint64)
    found = permuted(np.arange(count), count, keys)
    assert sorted(found) == list(range(count))
    if count > 10:
        assert list(found) != list(range(count))


def test_an_epoch_sees_every_window_once_and_a_step_depends_on_nothing_else() -> None:
    sampler = Sampler(tokens=1_000, length=10, batch_size=9, seed=3)
    first = np.concatenate([sampler.starts(step) for step in range(11)])
    assert len({start // 10 for start in first}) == sampler.count == 99
    assert np.array_equal(sampler.starts(40), Sampler(1_000, 10, 9, 3).starts(40))
    assert not np.array_equal(sampler.starts(0), Sampler(1_000, 10, 9, 4).starts(0))
    assert sampler.starts(10**9).max() <= 1_000 - 11  # far away, and no slower
    assert Sampler(10**12, 512, 4, 0).starts(123).shape == (4,)  # of a corpus of any size


def test_windows_go_over_the_ends_of_shards(tmp_path: Path) -> None:
    numbers = np.arange(20, dtype=np.uint16)
    files = [tmp_path / name for name in "abc"]
    for file, part in zip(files, (numbers[:7], numbers[7:8], numbers[8:]), strict=True):
        part.tofile(file)
    shards = Shards(files, np.uint16)
    assert len(shards) == 20
    starts = np.array([0, 5, 7, 8, 15])
    assert np.array_equal(shards.windows(starts, 5), starts[:, None] + np.arange(5))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_what_was_read_is_not_kept_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    np.zeros(2**24, dtype=np.uint16).tofile(file)  # 32 MB
    shards, before = Shards([file], np.uint16), resident()
    for start in range(0, 2**24 - 10_000, 2**18):
        shards.windows(np.arange(start, start + 2**18 - 1_000, 1_000), 1_000)
    assert resident() - before < 16e6


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
