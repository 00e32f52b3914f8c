"""``edgeforge.json`` of a bundle (schema ``edgeforge.bundle/1``): all that a wrapper must know of its model.

The wrappers in every language read this file, and `edgeforge verify` checks the bundle against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME = "edgeforge.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), populate_by_name=True)


class ImageInput(_Part):
    """Upright 8-bit image -> `channels` (gray: ITU-R 601 luma, as Pillow's ``convert("L")``) -> `height` x `width`
    (Pillow's antialiased BILINEAR, rows first; versions of Pillow that begin with columns give values that differ by 1
    here and there) -> (value / 255 - mean) / std per channel, computed in float32 as value * 1/(255 std) + -mean/std.

    The tensor is (1, channels, height, width), float32. Where `normalised_inside`, the model takes the 8-bit values.
    """

    kind: Literal["image"] = "image"
    name: str
    channels: Literal[1, 3]
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["bilinear_antialiased"] = "bilinear_antialiased"
    normalised_inside: bool = False


class WordPiece(_Part):
    """A tokenizer like BERT's, simple enough for the wrappers to have it inside. `vocabulary`: one token a line."""

    vocabulary: str
    lowercase: bool
    strip_accents: bool
    clean_text: bool
    handle_chinese_chars: bool
    prefix: str
    longest_word: int
    unknown: str
    before: int
    after: int
    special: dict[str, int]


class TextInput(_Part):
    """Token ids and a mask of ones, each (1, length) of `dtype`; at most `max_length` ids, cut on the side `truncate`.

    `lengths`: those the model takes, filled up with `pad_id` where the mask is 0; empty: any up to `max_length`.
    """

    kind: Literal["text"] = "text"
    ids: str = "input_ids"
    mask: str | None = "attention_mask"
    dtype: Literal["int64", "int32"]
    max_length: int
    lengths: tuple[int, ...] = ()
    pad_id: int
    truncate: Literal["right", "left"]
    tokenizer: WordPiece | None = None
    tokenizer_file: str | None = None


class PromptInput(_Part):
    """A language model: texts go in and come out through the tokenizer inside the file."""

    kind: Literal["prompt"] = "prompt"
    context: int | None = None
    chat_template: bool = False


class Output(_Part):
    """(1, labels) numbers: logits, whose softmax are the probabilities, or these themselves."""

    name: str
    meaning: Literal["logits", "probabilities"]
    labels: tuple[str, ...]


class Array(_Part):
    """Little-endian values in C order, from byte `offset` of the golden file on."""

    offset: int
    dtype: Literal["uint8", "int32", "float32"]
    shape: tuple[int, ...]


class GoldenText(_Part):
    """A text and its ids by the tokenizer that the model was trained with."""

    text: str
    ids: tuple[int, ...]


class Golden(_Part):
    """Real inputs and the file's answers to them when it was verified.

    A device passes when no number of the output is further than `max_abs_error` from the recorded one, and at least
    the share `agreement` of samples has the same largest number. `why` says where the tolerance comes from.
    """

    file: str
    samples: int
    inputs: dict[str, Array]
    outputs: Array
    max_abs_error: float
    agreement: float
    why: str
    texts: tuple[GoldenText, ...] = ()


class GoldenPrompt(_Part):
    """Plain text, and how the likeliest tokens go on, without white space around it."""

    prompt: str
    text: str


class GoldenPrompts(_Part):
    """What a language model's file wrote, up to the first token that was not `margin` (logits) above every other one.

    A device passes when at least the share `agreement` of the prompts goes on as recorded, of at most `max_new_tokens`
    tokens, each the likeliest, the prompt read as it stands: special tokens as the file says, no chat template.
    """

    prompts: tuple[GoldenPrompt, ...]
    max_new_tokens: int
    margin: float
    agreement: float


class ModelFile(_Part):
    """`sha256` of a folder is taken over its sorted lines ``path sha256``; it is the one in the run's report."""

    file: str
    format: Literal["onnx", "ort", "coreml", "gguf"]
    sha256: str
    bytes: int


class Licence(_Part):
    """Of what this bundle was made of or needs. "unknown" is for the app's developer to find out before shipping."""

    what: str
    licence: str
    source: str


class Contract(_Part):
    """All of edgeforge.json. `models`: the one that the wrapper opens first."""

    schema_: Literal["edgeforge.bundle/1"] = Field(default="edgeforge.bundle/1", alias="schema")
    identifier: str
    artifact: str
    target: str
    pipeline: str
    run: str
    created: str
    edgeforge: str
    task: str | None
    models: tuple[ModelFile, ...]
    input: Annotated[ImageInput | TextInput | PromptInput, Field(discriminator="kind")]
    output: Output | None
    golden: Golden | GoldenPrompts | None
    metrics: dict[str, float | None] = {}
    quantization: dict[str, Any] = {}
    deployment: dict[str, str] = {}
    licences: tuple[Licence, ...] = ()
    lineage: dict[str, Any] = {}

    @property
    def model(self) -> ModelFile:
        """The one that the wrapper opens."""
        return self.models[0]

    def to_json(self) -> str:
        """The text of the file."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read_contract(path: Path) -> Contract | None:
    """An edgeforge.json, or None for what is none."""
    try:
        return Contract.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
