"""`M3Processor`: pictures to pixels, messages to token ids, ids back to text.

One image token per picture leaves here, whatever the scale; the model expands it. It knows the
tokenizer's chat template and the picture size, and nothing about weights or scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from m3model.padding import LARGEST_SQUARE_PX, padded_square
from m3model.prompt.templates import VICUNA_TEMPLATE

IMAGE_TOKEN = "<image>"
Message = Mapping[str, Any]


class M3Processor:
    """The tokenizer and the image processor of one checkpoint.

    Args:
        image_processor: pads to a square, resizes, normalises.
        tokenizer: holds `<image>` as one token, and a chat template (vicuna_v1 when it has none).

    Raises:
        ValueError: the tokenizer has no `<image>` token.
    """

    model_input_names = ("input_ids", "attention_mask", "pixel_values")

    def __init__(
        self, image_processor: LlavaImageProcessorPil, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if image_token_id is None or image_token_id == tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no {IMAGE_TOKEN} token")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token = IMAGE_TOKEN
        self.image_token_id = int(image_token_id)
        if tokenizer.chat_template is None:
            tokenizer.chat_template = VICUNA_TEMPLATE

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> M3Processor:
        """The processor of a model folder (tokenizer files and `preprocessor_config.json`)."""
        return cls(
            LlavaImageProcessorPil.from_pretrained(pretrained_model_name_or_path, **kwargs),
            AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs),
        )

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Writes the tokenizer's files and `preprocessor_config.json` into the folder."""
        self.image_processor.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)

    def pixel_values(self, images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """Pictures for the vision tower, (B, 3, H, W) float32.

        Padded to a square, resized, normalised.
        """
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        if not pictures:
            raise ValueError("no picture given")
        return self.image_processor(
            [self._cheap_to_pad(picture) for picture in pictures], return_tensors="pt"
        ).pixel_values.to(torch.float32)

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt as text, with one `<image>` per picture.

        Special tokens inside users' text are defused.

        Args:
            messages: `{"role", "content"}` with content a string or a list of `{"type": "text",
                "text": ...}` and `{"type": "image"}`.

        Raises:
            ValueError: no message, an unknown role or an unknown part.
        """
        clean = [self._clean_message(message) for message in messages]
        if not clean:
            raise ValueError("messages must not be empty")
        text = self.tokenizer.apply_chat_template(
            clean, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        wanted = sum(part["type"] == "image" for message in clean for part in message["content"])
        if text.count(IMAGE_TOKEN) != wanted:
            raise ValueError(
                f"the chat template placed {text.count(IMAGE_TOKEN)} of {wanted} pictures"
            )
        return str(text)

    def most_characters(self, n_tokens: int) -> int:
        """Characters that no text of `n_tokens` tokens exceeds, each of them as long as they get.

        A space behind each is allowed for, which some tokenizers drop; they also drop longer runs,
        and make one token of any unknown word: of that, more may fit than is said here.
        """
        return n_tokens * (self._longest_token + 1)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt: one image token per picture, generation prompt at the end."""
        return self._tokenize(self.apply_chat_template(messages))

    def prompt_and_answer(
        self, asked: str | Sequence[Message], reference: str | None
    ) -> tuple[list[int], list[int] | None]:
        """Ids of a prompt, and of the answer if there is one.

        Args:
            asked: a question about one picture, or the whole conversation.
        """
        if isinstance(asked, str):
            content = [{"type": "image"}, {"type": "text", "text": asked}]
            asked = [{"role": "user", "content": content}]
        prompt = self.prompt_ids(asked)
        return prompt, None if reference is None else self.answer_ids(asked, reference)

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Ids that the chat template puts behind the prompt for this answer, its end included.

        Raises:
            ValueError: the template does not continue its own generation prompt.
        """
        said = [*messages, {"role": "assistant", "content": answer}]
        asked = self.apply_chat_template(messages)
        answered = self.apply_chat_template(said, add_generation_prompt=False)
        # Each stretch between pictures is tokenised alone; only the last one matters here.
        before, whole = (
            self.tokenizer(text.rsplit(IMAGE_TOKEN, 1)[-1], add_special_tokens=False)["input_ids"]
            for text in (asked, answered)
        )
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError("the chat template does not continue its own generation prompt")
        return list(whole[len(before) :])

    def question_ids(self, text: str) -> list[int]:
        """Tokens of the bare question: no special tokens, no template."""
        return list(self.tokenizer(self._defuse(text), add_special_tokens=False)["input_ids"])

    def __call__(
        self,
        text: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image] | None = None,
        return_tensors: str = "pt",
        padding_side: str = "left",
    ) -> BatchFeature:
        """`input_ids`, `attention_mask` (B, n), and `pixel_values` (P, 3, H, W) with pictures.

        Args:
            text: prompts as `apply_chat_template` renders them, one `<image>` per picture.
            images: pictures in the order of their `<image>` marks over all prompts.
            return_tensors: only "pt".
            padding_side: side on which shorter rows are padded.

        Raises:
            ValueError: the numbers of marks and pictures differ.
        """
        if return_tensors != "pt" or padding_side not in ("left", "right"):
            raise ValueError('return_tensors must be "pt" and padding_side "left" or "right"')
        rows = [self._tokenize(prompt) for prompt in ([text] if isinstance(text, str) else text)]
        pictures = (
            [] if images is None else [images] if isinstance(images, Image.Image) else list(images)
        )
        marks = sum(row.count(self.image_token_id) for row in rows)
        if marks != len(pictures):
            raise ValueError(
                f"{len(pictures)} pictures for {marks} {IMAGE_TOKEN} marks in the text: write one "
                "mark per picture, or render the prompt with apply_chat_template"
            )
        longest = max((len(row) for row in rows), default=0)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            span = (
                slice(longest - len(row), longest) if padding_side == "left" else slice(0, len(row))
            )
            ids[i, span] = torch.tensor(row, dtype=torch.long)
            mask[i, span] = 1
        data = {"input_ids": ids, "attention_mask": mask}
        if pictures:
            data["pixel_values"] = self.pixel_values(pictures)
        return BatchFeature(data)

    def decode(self, ids: torch.Tensor | Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of one row of ids."""
        row = ids.tolist() if isinstance(ids, torch.Tensor) else [int(i) for i in ids]
        return str(self.tokenizer.decode(row, skip_special_tokens=skip_special_tokens)).strip()

    def batch_decode(
        self,
        rows: torch.Tensor | Iterable[torch.Tensor | Sequence[int]],
        skip_special_tokens: bool = True,
    ) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    def _cheap_to_pad(self, picture: Image.Image) -> Image.Image:
        """The RGB picture, or if padding it would be dear, the square that would become of it."""
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
        processor = self.image_processor
        size = processor.size["shortest_edge"]
        usual = processor.do_pad and processor.do_resize and size
        bicubic = processor.resample == Image.Resampling.BICUBIC
        if not (usual and bicubic) or max(rgb.size) <= LARGEST_SQUARE_PX:
            return rgb
        return padded_square(rgb, size, tuple(int(x * 255) for x in processor.image_mean))

    def _tokenize(self, prompt: str) -> list[int]:
        # Each stretch between pictures is tokenised alone, as in LLaVA's own code: word-start
        # marks then fall alike.
        # The leading <s> goes first by itself: glued to a word it would cost that word its mark.
        bos, ids = self.tokenizer.bos_token, list[int]()
        if bos and prompt.startswith(bos):
            ids.append(int(self.tokenizer.bos_token_id))
            prompt = prompt.removeprefix(bos)
        for index, stretch in enumerate(prompt.split(IMAGE_TOKEN)):
            if index:
                ids.append(self.image_token_id)
            if stretch:
                ids.extend(self.tokenizer(stretch, add_special_tokens=False)["input_ids"])
        return ids

    def _defuse(self, text: str) -> str:
        # "<image>" or "</s>" typed by a user is text, not a picture or an end: a space keeps it
        # from matching.
        for token in {*self.tokenizer.all_special_tokens, IMAGE_TOKEN}:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _clean_message(self, message: Message) -> dict[str, Any]:
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"unknown role {role!r}: use system, user or assistant")
        parts = (
            [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        )
        clean: list[dict[str, str]] = []
        for part in parts:
            kind = part.get("type")
            if kind == "text" and isinstance(part.get("text"), str):
                clean.append({"type": "text", "text": self._defuse(part["text"])})
            elif kind == "image" and role == "user":
                clean.append({"type": "image"})
            else:
                raise ValueError(f"unknown content part {part!r} in a {role} message")
        return {"role": role, "content": clean}


def build_image_processor(
    size: int, mean: Sequence[float] = OPENAI_CLIP_MEAN, std: Sequence[float] = OPENAI_CLIP_STD
) -> LlavaImageProcessorPil:
    """The official preprocessing: pad with the mean colour, resize (bicubic), normalise."""
    return LlavaImageProcessorPil(
        do_pad=True,
        do_resize=True,
        size={"shortest_edge": size},
        do_center_crop=True,
        crop_size={"height": size, "width": size},
        image_mean=list(mean),
        image_std=list(std),
    )
