"""SentencePiece (Kudo & Richardson 2018): models of the library `sentencepiece`, which is imported when it is needed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.batches import MissingLibrary
from input_pipeline.tokenization import LINE_END, PIECE, cut, starts

LONGEST_LINE = 4 * PIECE
"""Bytes of what is learnt from at once."""


class SentencePieces:
    """Tokens of a SentencePiece model, a file that ends in .model. It is data: reading it runs no code.

    Args:
      model: contents of the file.

    Raises:
      MissingLibrary: if `sentencepiece` is not installed.
      ValueError: if it is no such model.
    """

    def __init__(self, model: bytes) -> None:
        library = _library()
        try:
            self._proto = library.sentencepiece_model_pb2.ModelProto.FromString(model)
            if not self._proto.pieces:
                raise ValueError("it has no pieces")
            self._processor = library.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # The library and that for its files have several classes.
            raise ValueError(f"no SentencePiece model ({error})") from None
        self._model = model

    @classmethod
    def of(cls, text: str, size: int) -> SentencePieces:
        """A unigram model (Kudo 2018) of a text, the same each time, with which nothing is unknown, and nothing lost but the
        character U+2581, which stands for spaces.

        Texts are not normalised, lines end with a token of their own, and bytes stand for characters without one.

        Args:
          text: to learn from.
          size: tokens at most; "<unk>", the end of a line and 256 bytes are among them.

        Raises:
          MissingLibrary: if `sentencepiece` is not installed.
          ValueError: if there is no room for the text's characters, or no text.
        """
        library, model = _library(), io.BytesIO()
        try:
            library.SentencePieceTrainer.Train(
                sentence_iterator=(part for line in text.split("\n") for part in cut(line)),
                model_writer=model,
                vocab_size=size,
                hard_vocab_limit=False,
                model_type="unigram",
                byte_fallback=True,
                character_coverage=1.0,
                user_defined_symbols=["\n"],
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                bos_id=-1,
                eos_id=-1,
                max_sentence_length=LONGEST_LINE,
                num_threads=1,  # Sums of several have another order.
                minloglevel=2,
            )
        except RuntimeError as error:
            said = " ".join(str(error).split()).rpartition("] ")[2]
            said = said.partition(" Increase vocab_size")[0]  # By flags of its own.
            raise ValueError(
                f"vocabulary is {size}: sentencepiece learns none of this text ({said})"
            ) from None
        return cls(model.getvalue())

    @property
    def size(self) -> int:
        return self._processor.GetPieceSize()

    @property
    def characters(self) -> np.ndarray | None:
        """Of models that divide a text and do not change it, as `of` learns them."""
        normaliser, model = self._proto.normalizer_spec, self._processor
        changes = normaliser.add_dummy_prefix or normaliser.remove_extra_whitespaces
        if changes or normaliser.precompiled_charsmap or not self._proto.trainer_spec.byte_fallback:
            return None
        counts = np.zeros(self.size, np.int32)
        for token in range(self.size):
            piece = model.IdToPiece(token)
            if model.IsByte(token):
                counts[token] = starts(np.array(int(piece[1:-1], 16)))
            elif not model.IsControl(token) and not model.IsUnknown(token):
                counts[token] = len(piece)
        return counts

    def pieces(self, text: str) -> Iterator[str]:
        """Lines, if their end is always a token of its own; else the text."""
        by_line = {piece.piece for piece in self._proto.pieces if "\n" in piece.piece} == {"\n"}
        by_line = by_line and "\n" in self._proto.trainer_spec.user_defined_symbols
        whole = self._proto.normalizer_spec.add_dummy_prefix or not by_line
        return (iter([text]) if text else iter([])) if whole else cut(text, behind=LINE_END)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 `[n]`, without those that mark its beginning or end."""
        return np.array(self._processor.Encode(text, add_bos=False, add_eos=False), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return self._processor.Decode(np.asarray(tokens).tolist())

    def to_json(self) -> str:
        model = base64.b64encode(self._model).decode()
        return json.dumps({"tokens": "sentencepiece", "model": model})

    @classmethod
    def of_json(cls, state: dict[str, Any]) -> SentencePieces:
        """That of which `to_json` wrote this object."""
        return cls(base64.b64decode(state["model"], validate=True))


def _library() -> Any:
    try:
        import sentencepiece
        import sentencepiece.sentencepiece_model_pb2
    except ImportError:
        raise MissingLibrary(
            "SentencePiece models need the library sentencepiece, which is not installed: pip install sentencepiece"
        ) from None
    return sentencepiece
