"""The measured models whose graphs can be built here, by their names in the table, and their ONNX graphs."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import nn

from benchmarks.device_estimator import architectures as own
from benchmarks.device_estimator import detection, segmentation

OPSET = 17


@dataclass(frozen=True)
class Source:
    """How one model is built. `shape` is its input's (for texts: batch and length), `where` the library."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 3, 224, 224)
    where: str = "timm"


def timm(name: str, size: int = 224, **arguments: Any) -> Source:
    """A model of timm; `arguments` are its own."""

    def build() -> nn.Module:
        import timm as library

        model: nn.Module = library.create_model(name, **arguments)
        return model

    return Source(build, (1, 3, size, size), f"timm {name}")


def hugging_face(config: str, model: str, shape: tuple[int, ...], **arguments: Any) -> Source:
    """A model of transformers from its configuration class."""

    def build() -> nn.Module:
        import transformers

        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**arguments))
        return built

    return Source(build, shape, f"transformers {model}")


def mine(build: Callable[[], nn.Module], *size: int) -> Source:
    """A network of this folder; `size` is one image's (C, H, W)."""
    return Source(build, (1, *size), "this folder")


def _hrnet(name: str, outputs: int, joined: int = 0) -> nn.Module:
    import timm as library

    return own.HrNet(library.create_model(name), outputs, joined=joined)


def _deeplab() -> nn.Module:
    import timm as library

    return own.DeepLabV3Plus(
        library.create_model("mobilenetv2_100", features_only=True, output_stride=16, out_indices=(1, 4))
    )


def _bisenet() -> nn.Module:
    import timm as library

    return segmentation.BiSeNet(library.create_model("resnet18", features_only=True, out_indices=(3, 4)))


_BERT_SIZE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def _detr(layers: int) -> Source:
    from transformers import ResNetConfig

    backbone = ResNetConfig(depths=[3, 4, 6 if layers == 50 else 23, 3], out_features=["stage4"])
    return hugging_face(
        "DetrConfig",
        "DetrForObjectDetection",
        (1, 3, 480, 480),
        use_timm_backbone=False,
        backbone_config=backbone,
        backbone=None,
        use_pretrained_backbone=False,
        num_queries=100,
    )


def _depth_anything() -> nn.Module:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        reshape_hidden_states=False,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        apply_layernorm=True,
    )
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=384,
            neck_hidden_sizes=[48, 96, 192, 384],
            fusion_hidden_size=64,
        )
    )


TEXT = (1, 384)
SOURCES: dict[str, Source] = {
    "albert_base_v2_hf": hugging_face("AlbertConfig", "AlbertForMaskedLM", TEXT, embedding_size=128, **_BERT_SIZE),
    "beit": hugging_face(
        "BeitConfig", "BeitForImageClassification", (1, 3, 224, 224), num_labels=1000, use_relative_position_bias=True
    ),
    "bert_base_uncased_hf": hugging_face("BertConfig", "BertForMaskedLM", TEXT),
    "bisenet": mine(_bisenet, 3, 720, 960),
    "convnext_base": timm("convnext_base"),
    "ddrnet23_slim": mine(segmentation.DdrNet23Slim, 3, 1024, 2048),
    "deeplabv3_plus_mobilenet": mine(_deeplab, 3, 513, 513),
    "densenet121": timm("densenet121"),
    "depth_anything": Source(_depth_anything, (1, 3, 518, 518), "transformers DepthAnythingForDepthEstimation"),
    "detr_resnet50": _detr(50),
    "detr_resnet101": _detr(101),
    "dla102x": timm("dla102x"),
    "efficientformer": timm("efficientformer_l1"),
    "efficientnet_b4": timm("efficientnet_b4", 380),
    "efficientnet_v2_s": timm("tf_efficientnetv2_s", 384),
    "efficientvit_b2_cls": timm("efficientvit_b2"),
    "efficientvit_l2_cls": timm("efficientvit_l2"),
    "electra_bert_base_discrim_google": hugging_face(
        "ElectraConfig", "ElectraForPreTraining", TEXT, embedding_size=768, **_BERT_SIZE
    ),
    "esrgan": mine(own.Esrgan, 3, 128, 128),
    "hrnet_face": mine(lambda: _hrnet("hrnet_w18", 29, 270), 3, 256, 256),
    "hrnet_pose": mine(lambda: _hrnet("hrnet_w32", 17), 3, 256, 192),
    "inception_v3": timm("inception_v3"),
    "mobile_vit": timm("mobilevit_s"),
    "mobilenet_v2": timm("mobilenetv2_100"),
    "mobilenet_v3_small": timm("mobilenetv3_small_100"),
    "nasnet": timm("nasnetalarge"),
    "pidnet": mine(segmentation.PidNetSmall, 3, 1024, 2048),
    "posenet_mobilenet": mine(own.PoseNet, 3, 513, 257),
    "quicksrnetlarge": mine(lambda: own.quicksrnet(64, 11), 3, 128, 128),
    "quicksrnetmedium": mine(lambda: own.quicksrnet(32, 5), 3, 128, 128),
    "quicksrnetsmall": mine(lambda: own.quicksrnet(32, 2), 3, 128, 128),
    "real_esrgan_general_x4v3": mine(own.RealEsrganGeneral, 3, 128, 128),
    "regnet_y_800mf": timm("regnety_008_tv"),
    "resnet18": timm("resnet18"),
    "resnet101": timm("resnet101"),
    "resnext50": timm("resnext50_32x4d"),
    "resnext101": timm("resnext101_32x8d"),
    "segformer_base": hugging_face(
        "SegformerConfig", "SegformerForSemanticSegmentation", (1, 3, 512, 512), num_labels=150, decoder_hidden_size=256
    ),
    "sesr_m5": mine(own.sesr_m5, 3, 128, 128),
    "squeezenet1_1": mine(own.squeezenet1_1, 3, 224, 224),
    "yamnet": mine(own.yamnet, 1, 96, 64),
    "yolov5": mine(lambda: detection.Yolo(48, (2, 4, 6, 2, 2), decoupled=False), 3, 640, 640),
    "yolov7": mine(detection.YoloV7Tiny, 3, 640, 640),
    "yolox": mine(lambda: detection.Yolo(32, (1, 3, 3, 1, 1), decoupled=True), 3, 640, 640),
}


def graph_of(name: str) -> tuple[onnx.ModelProto, int]:
    """The model's ONNX graph without its weights' contents, batch normalization folded, and its parameters."""
    source = SOURCES[name]
    torch.manual_seed(0)
    model = source.build().eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    if hasattr(model, "config"):
        model.config.return_dict = False
    sample = torch.zeros(source.shape, dtype=torch.int64) if len(source.shape) == 2 else torch.zeros(source.shape)
    written = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (sample,), written, dynamo=False, opset_version=OPSET)
    return _folded(written.getvalue()), sum(parameter.numel() for parameter in model.parameters())


def _folded(model: bytes) -> onnx.ModelProto:
    """The same graph without the arithmetic on shapes that torch's tracer leaves, so that every size is known."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load_model(options.optimized_model_filepath)
