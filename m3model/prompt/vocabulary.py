"""A small tokenizer in which nothing is unknown, for models trained from nothing.

Lower-case WordPiece: listed words are one token, every other ASCII word spells out in letters. It
knows the prompt's shape (`<s><image><q>question<a>answer</s>`), not what the words mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase, digits, punctuation

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from m3model.prompt.templates import QUESTION_TEMPLATE

PAD, BOS, EOS, UNK, IMAGE, QUESTION, ANSWER = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<q>",
    "<a>",
)
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, IMAGE, QUESTION, ANSWER)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of special tokens, ASCII characters and `words`, in that order of ids.

    Ids: `<pad>` 0, `<s>` 1, `</s>` 2, `<unk>` 3, `<image>` 4, `<q>` 5, `<a>` 6. Accents are
        stripped; a character
    outside ASCII becomes one `<unk>` without taking its word along.

    Args:
        words: lower-case words of letters and digits, one token each; repeats and single
            characters are skipped.

    Raises:
        ValueError: a word that could never be reached (upper case, spaces, punctuation).
    """
    alphabet = ascii_lowercase + digits
    pieces = [*SPECIAL_TOKENS, *alphabet, *punctuation, *("##" + c for c in alphabet)]
    wrong = [word for word in words if not word or set(word) - set(alphabet)]
    if wrong:
        raise ValueError(f"words are lower-case letters and digits only, got {wrong[:5]}")
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=10_000)
    )
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[\u2018\u2019]"), "'"),
            normalizers.Replace(Regex("[\u201c\u201d]"), '"'),
            # Alone between spaces, a foreign character is its own <unk>.
            normalizers.Replace(Regex(r"[^\x21-\x7e\s]"), " \ufffd "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, QUESTION, ANSWER],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = QUESTION_TEMPLATE
    return tokenizer
