"""What the question's words say, as numbers. Knows nothing of pictures or embeddings."""

import re
import unicodedata
import zlib

import numpy as np

HASH_BUCKETS = 128
EMBEDDING_DIMS = 64
WORD_NAMES = (
    *("n_words", "n_letters", "longest_word", "has_digit"),
    *(f"word_{bucket:03d}" for bucket in range(HASH_BUCKETS)),
)

_WORD = re.compile(r"[^\W_]+")


def word_features(question: str) -> np.ndarray:
    """Return the numbers named in ``WORD_NAMES``: sizes, then a hashed bag of words."""
    words = normalised_words(question)
    group = np.zeros(4 + HASH_BUCKETS, dtype=np.float32)
    group[0] = len(words)
    group[1] = sum(len(word) for word in words)
    group[2] = max((len(word) for word in words), default=0)
    group[3] = any(character.isdigit() for character in question)
    for word in words:
        group[4 + zlib.crc32(word.encode()) % HASH_BUCKETS] += 1.0
    return group


def normalised_words(question: str) -> list[str]:
    """Return the words of a question, case and typography folded away."""
    return _WORD.findall(unicodedata.normalize("NFKC", question).casefold())
