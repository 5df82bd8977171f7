"""Texts into the number of tokens that a model's own tokenizer makes of them, without torch.

CLIP's way from text to pieces is that of OpenAI's `clip/simple_tokenizer.py`, in the words of the
`tokenizers` library.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pipeline.artefacts.chain import TOKENIZER_FILES
from pipeline.errors import RequestError

_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens:
    """Counts the tokens of texts.

    Raises:
        RequestError: the folder holds no tokenizer that can be read.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _read(folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # A tag recurs in thousands of captions.
        self._counted = lru_cache(maxsize=200_000)(self._count)

    def of(self, texts: Sequence[str]) -> int:
        """Tokens of `texts` joined by ", ", start and end not counted.

        Pieces end at a space, so that each text with its comma counts by itself.
        """
        joined = sum(self._counted(f"{text},") for text in texts[:-1])
        return joined + (self._counted(texts[-1]) if texts else 0)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _read(folder: Path) -> Tokenizer:
    whole, vocabulary, merges = (str(folder / name) for name in TOKENIZER_FILES)
    try:
        if Path(whole).is_file():
            return Tokenizer.from_file(whole)
        pieces = BPE.from_file(
            vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"
        )
    except Exception as error:  # tokenizers raises no narrower class of its own.
        raise RequestError(
            f"{folder} ([caption].tokenizer) holds no tokenizer that can be read ({error}). It "
            "should hold tokenizer.json, or vocab.json and merges.txt, as the folder `tokenizer` "
            "of a diffusers model does."
        ) from error
    return _clip(pieces)


def _clip(pieces: BPE) -> Tokenizer:
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
