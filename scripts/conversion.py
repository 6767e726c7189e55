"""Makes data sets that are read fast: the program behind scripts/convert."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import rich.console
import rich.progress
from picture_sources import BAD, SOURCES, add_flags, in_flags, named_source

from trainer import backend
from trainer.exits import (
    INTERRUPTED,
    CannotCreate,
    UsageError,
    UserError,
    file_problem,
    one_line,
)

if TYPE_CHECKING:
    from input_pipeline.writing import Identity

TEXTS = """\
SRC is one of
  a text in UTF-8
  a folder of them, whose files *.txt are joined by new lines in the order of their names
  a table, *.csv, *.tsv or *.jsonl, or a folder of them, of which the rows of a column are joined by new lines (--column)

DST holds train.npy, validation.npy and test.npy, tokenizer.json and index.json, the same bytes each time. It is written as
.DST.partial and renamed when it is complete; stopped before, the same command goes on. In a configuration it is
packed_corpus.folder = "DST".
"""
LINE_SECONDS = 10.0
REFRESH_SECONDS = 0.1


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, without the program's name; returns the exit code."""
    line = _parser().parse_args(arguments)
    line.destination = os.path.expanduser(line.destination)
    try:
        backend.start()
        {"images": _images, "text": _text, "verify": _verify}[line.command](line)
    except KeyboardInterrupt:
        print("lockstep: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        known = _user_error(error, line.destination)
        if known is None:
            traceback.print_exc()
            return UserError.code
        print(f"lockstep: {_in_flags(one_line(known))}", file=sys.stderr)
        return known.code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/convert", description="Makes data sets that are read fast."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    images = commands.add_parser(
        "images",
        help="pack pictures into a folder that is mapped into memory",
        description="Packs pictures into a folder that is mapped into memory.",
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    images.add_argument("source", metavar="SRC")
    images.add_argument("destination", metavar="DST", help="a folder, which must not be there yet")
    add_flags(images)
    text = commands.add_parser(
        "text",
        help="pack a text, as tokens, into a folder that is mapped into memory",
        description="Packs a text, as tokens, into a folder that is mapped into memory.",
        epilog=TEXTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text.add_argument("source", metavar="SRC")
    text.add_argument("destination", metavar="DST", help="a folder, which must not be there yet")
    text.add_argument(
        "--tokens",
        default="characters",
        metavar="KIND",
        help="characters, bytes, words, subwords (byte pair encoding, learnt from the training part), sentencepiece (a "
        "unigram model, likewise) or the path of a tokenizer.json, of a folder with one or of a SentencePiece .model (default: "
        "characters)",
    )
    text.add_argument(
        "--vocabulary",
        type=int,
        metavar="N",
        help="how many words, with <eos> and <unk>, or subwords (default: all words)",
    )
    text.add_argument(
        "--extra_characters",
        default="",
        metavar="TEXT",
        help="that have tokens even if the training part lacks them",
    )
    text.add_argument("--column", metavar="NAME", help="of tables")
    for part, share in (("validation", 0.1), ("test", 0.0)):
        text.add_argument(
            f"--{part}",
            type=_share_or_path,
            default=share,
            metavar="SHARE|PATH",
            help=f"held out, of SRC's end or a source of its own (default: {share})",
        )
    verify = commands.add_parser(
        "verify",
        help="compare a packed folder with its checksums",
        description="Compares all contents of a packed folder with their checksums.",
    )
    verify.add_argument("destination", metavar="DST")
    return parser


def _images(line: argparse.Namespace) -> None:
    from input_pipeline.batches import DataError
    from input_pipeline.image_folder import ImageFolder
    from input_pipeline.packing import pack

    _check_new(line.destination)
    try:
        source, files = named_source(line)
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    with Progress(sys.stderr, "pictures") as progress:
        each = isinstance(source, ImageFolder)
        pack(source, line.destination, _identity(line, files, each), progress)
    print(line.destination)


def _text(line: argparse.Namespace) -> None:
    from input_pipeline.batches import DataError
    from input_pipeline.packed_corpus import pack_corpus
    from input_pipeline.reading import TABLES
    from input_pipeline.text_files import files_of, make_tokenizer, read_texts

    _check_new(line.destination)
    try:
        texts = read_texts(line.source, line.tokens, line.validation, line.test, line.column)
        tokenizer = make_tokenizer(texts, line.tokens, line.vocabulary, line.extra_characters)
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    given = [path for path in (line.validation, line.test) if isinstance(path, str)]
    suffixes = TABLES if line.column else (".txt",)
    files = [file for path in (line.source, *given) for file in files_of(path, suffixes)]
    with Progress(sys.stderr, "characters") as progress:
        pack_corpus(texts, tokenizer, line.destination, _identity(line, files), progress)
    print(line.destination)


def _check_new(destination: str) -> None:
    from input_pipeline.batches import DataError
    from input_pipeline.writing import check_new

    try:
        check_new(destination)
    except DataError as error:
        raise CannotCreate(str(error)) from None


def _verify(line: argparse.Namespace) -> None:
    from input_pipeline.manifest import verify

    with Progress(sys.stderr, "bytes") as progress:
        total = verify(line.destination, progress)
    print(f"{line.destination}: {total:,} bytes as they were written")


def _share_or_path(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _identity(
    line: argparse.Namespace, files: Sequence[pathlib.Path], each: bool = False
) -> Identity:
    """Digests of the arguments and of the names, sizes and times of the files: another conversion has another.

    As long as nothing was skipped what is done about bad pictures may change, and, if each file is a picture, in order, those
    behind the ones that are done: what is written depends on neither.
    """
    options = {k: v for k, v in vars(line).items() if k not in ("source", "destination", *BAD)}
    options["array"] = line.source.partition(".npz:")[2]
    named = json.dumps(options, sort_keys=True).encode()
    digests = [_digest(file) for file in files]

    def identity(done: int, skipped: Sequence[str]) -> str:
        state = hashlib.sha256(named)
        state.update(b"".join(digests[:done] if each and not skipped else digests))
        if skipped:
            state.update(str(line.on_bad_record).encode())
        return state.hexdigest()

    return identity


def _digest(file: pathlib.Path) -> bytes:
    named = os.fsencode(os.path.realpath(file))
    with contextlib.suppress(OSError):  # A link to nothing is told of where it is read.
        known = file.stat()
        named += b" %d %d" % (known.st_size, known.st_mtime_ns)
    return hashlib.blake2b(named, digest_size=16).digest()


def _user_error(error: Exception, destination: str) -> UserError | None:
    """What a person can mend, with its exit code; None for a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return file_problem(error, destination, "give the same command again, which goes on")
    # Imports TensorFlow, which is silent only if backend.start has imported it.
    from trainer.data_errors import data_problem

    return data_problem(error)


def _in_flags(message: str) -> str:
    """What sources and texts say of their arguments, which have other names here: tokens = "bytes" is --tokens=bytes."""
    message = re.sub(r'\btokens (?:is|=) "([^"]*)"', r"--tokens=\1", in_flags(message))
    return re.sub(r"(?<!-)\b(extra_characters\b|vocabulary(?= is ))", r"--\1", message)


class Progress:
    """How far it is: a bar on a terminal, elsewhere a line every ten seconds. Called with what is done and the whole."""

    def __init__(self, stream: TextIO, unit: str) -> None:
        self._stream, self._unit = stream, unit
        self._shown = time.monotonic()
        self._bar: Any = None
        if stream.isatty() and os.environ.get("TERM") != "dumb":
            console = rich.console.Console(file=stream)
            columns = [
                rich.progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
                rich.progress.BarColumn(),
                rich.progress.TimeRemainingColumn(),
            ]
            self._bar = rich.progress.Progress(*columns, console=console, auto_refresh=False)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        wait = REFRESH_SECONDS if self._bar else LINE_SECONDS
        if now - self._shown < wait and done < total:
            return
        self._shown = now
        if self._bar:
            task = (
                self._bar.task_ids[0] if self._bar.task_ids else self._bar.add_task("", total=total)
            )
            self._bar.update(task, completed=done, refresh=True)
        else:
            print(f"{done:,}/{total:,} {self._unit} ({100 * done // total} %)", file=self._stream)


if __name__ == "__main__":
    backend.end(main(sys.argv[1:]))
