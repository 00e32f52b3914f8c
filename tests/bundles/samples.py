# ruff: noqa: RUF001  (texts that look like others are what it is about)
"""Images and texts on which the wrappers of every language must give what Python gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeforge.bundles._tokenizer import TRICKY

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = (
    ((7, 5), (13, 4)),
    ((40, 30), (8, 8)),
    ((8, 8), (8, 8)),
    ((1, 1), (3, 2)),
    ((100, 3), (9, 9)),
    ((33, 17), (16, 17)),
)
"""(width, height) before and after: larger, smaller, the same, one axis alone."""

TEXTS = (
    *TRICKY,
    "a[SEP][SEP] b [UNK]c",
    "ÅÄÖ åäö é e\u0301 Ω Ω ﷺ ｆｕｌｌ",
    "«quotes» “curly” ‘x’ … — ¿¡ ・ 。 ،",
    "\u3000wide\u2003spaces\u2028lines\u200b\ufeff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀 🇩🇪",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "ПРИВЕТ Ελληνικά ΣΊΣΥΦΟΣ العربية हिन्दी ไทย",
)


def image_cases() -> list[dict[str, Any]]:
    """Each with RGBA values of an image, the model's input, and what Pillow and numpy make of it."""
    chance = np.random.default_rng(0)
    cases = []
    for (width, height), (new_width, new_height) in SIZES:
        for channels in (1, 3):
            rgba = chance.integers(0, 256, (height, width, 4), dtype=np.uint8)
            rgba[..., 3] = 255
            image = Image.fromarray(rgba[..., :3]).convert("L" if channels == 1 else "RGB")
            # One axis after the other: which comes first differs between versions of Pillow, and moves values by 1.
            rows = image.resize((new_width, height), Image.Resampling.BILINEAR)
            resized = np.asarray(rows.resize((new_width, new_height), Image.Resampling.BILINEAR))
            at_once = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR))
            assert np.abs(resized.astype(int) - at_once).max() <= 1
            pixels = resized.reshape(new_height, new_width, channels)
            mean, std = np.asarray(MEAN[:channels]), np.asarray(STD[:channels])
            scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
            values = (pixels.astype(np.float32) * scale + shift).transpose(2, 0, 1)
            cases.append(
                {
                    "rgba": rgba.ravel().tolist(),
                    "size": [width, height],
                    "input": {
                        "width": new_width, "height": new_height, "channels": channels,
                        "mean": mean.tolist(), "std": std.tolist(),
                    },
                    "pixels": pixels.ravel().tolist(),
                    "values": values.ravel().astype(float).tolist(),
                }
            )  # fmt: skip
    return cases


def tokenizers(folder: Path) -> list[Path]:
    """Folders of WordPiece tokenizers: lower-case, cased, without accents stripped; each knows some of everything."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = []
    settings = (
        {"lowercase": True},
        {"lowercase": False},
        {"lowercase": True, "strip_accents": False},
        {"lowercase": False, "handle_chinese_chars": False, "strip_accents": True},
    )
    characters = sorted({letter for text in TEXTS for letter in text + text.lower()} - set(" \n\r\t\0"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        "hello",
        "Hello",
        "world",
        "ist",
        "##anbul",
        "caf",
        "##é",
        "cafe",
        "naive",
        "prize",
        "the",
        "of",
        "3",
        "##45",
    ]
    pieces = [*characters, *(f"##{letter}" for letter in characters[::2])]
    vocabulary = list(dict.fromkeys([*special, *pieces, *words]))
    for choice in settings:
        tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(**choice)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)
        made.append(folder / str(len(made)))
        fast.save_pretrained(made[-1])
    return made


def text_cases(folder: Path, max_length: int = 24) -> list[dict[str, Any]]:
    """Each with a tokenizer's settings as edgeforge.json has them, its vocabulary, texts, and the ids Python makes."""
    from edgeforge.bundles._tokenizer import wordpiece, write_vocabulary
    from edgeforge.models import tokenizer

    cases = []
    for home in tokenizers(folder):
        settings, reader = wordpiece(home), tokenizer.read(home)
        assert settings is not None
        write_vocabulary(home, home / "vocab.txt")
        reader.truncation_side = "left" if len(cases) == 1 else "right"
        ids = reader(list(TEXTS), truncation=True, max_length=max_length)["input_ids"]
        cases.append(
            {
                "settings": settings.model_dump(mode="json"),
                "input": {"max_length": max_length, "truncate": reader.truncation_side},
                "vocabulary": (home / "vocab.txt").read_text(encoding="utf-8"),
                "texts": list(TEXTS),
                "ids": ids,
            }
        )
    return cases
