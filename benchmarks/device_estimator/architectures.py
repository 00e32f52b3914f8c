"""Networks of the measured table that neither timm nor transformers holds, with random weights: only shapes matter.

Each follows its paper or its authors' code; `run.py` compares the number of parameters with the published one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, act: Any = nn.ReLU
) -> nn.Module:
    """Convolution, batch normalization, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act(),
    )


def bare(inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
    """A convolution with a bias and nothing behind it."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


# -- classification


class Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = bare(inputs, squeezed, 1)
        self.one, self.three = bare(squeezed, expanded, 1), bare(squeezed, expanded)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.one(x).relu(), self.three(x).relu()], 1)


def squeezenet1_1() -> nn.Module:
    """Iandola et al., 2016, in the authors' version 1.1."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    fires = [Fire(64, 16, 64), Fire(128, 16, 64), pool, Fire(128, 32, 128), Fire(256, 32, 128), pool]
    fires += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    head = [bare(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, *fires, *head)


def mobilenet_v1(inputs: int, *, last_stride: int = 2) -> nn.Sequential:
    """Howard et al., 2017: the layers before the pooling, 1,024 channels."""
    widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    widths += [(512, 1)] * 5 + [(1024, last_stride), (1024, 1)]
    layers, channels = [conv(inputs, 32, stride=2)], 32
    for width, stride in widths:
        layers += [conv(channels, channels, stride=stride, groups=channels), conv(channels, width, 1)]
        channels = width
    return nn.Sequential(*layers)


def yamnet() -> nn.Module:
    """Google's YAMNet: MobileNet v1 on a spectrogram of 96 by 64, 521 classes."""
    return nn.Sequential(mobilenet_v1(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 521), nn.Sigmoid())


# -- super resolution


class Residual(nn.Module):
    def __init__(self, body: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.body(x) if self.scale == 1 else self.body(x) * self.scale)


def quicksrnet(width: int, depth: int) -> nn.Module:
    """Berger et al., 2023, times 4."""
    layers: list[nn.Module] = [bare(3, width), nn.ReLU6()]
    for _ in range(depth):
        layers += [bare(width, width), nn.ReLU6()]
    return nn.Sequential(*layers, bare(width, 48), nn.PixelShuffle(4), nn.Hardtanh(0, 1))


def sesr_m5() -> nn.Module:
    """Bhardwaj et al., 2022, times 4, in the form before its linear blocks are collapsed (343 K parameters)."""

    def block(inputs: int, outputs: int, kernel: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, 256, kernel, padding=kernel // 2, bias=False), nn.Conv2d(256, outputs, 1)
        )

    blocks = [nn.Sequential(Residual(block(16, 16, 3)), nn.ReLU()) for _ in range(5)]
    return nn.Sequential(
        block(3, 16, 5), nn.ReLU(), Residual(nn.Sequential(*blocks)), block(16, 48, 5), nn.PixelShuffle(4)
    )


class RealEsrganGeneral(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN (Wang et al., 2021): 64 channels, 32 layers, times 4."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [bare(3, 64), nn.PReLU(64)]
        for _ in range(32):
            layers += [bare(64, 64), nn.PReLU(64)]
        self.body = nn.Sequential(*layers, bare(64, 48), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + functional.interpolate(x, scale_factor=4, mode="nearest")


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(bare(64 + 32 * i, 32 if i < 4 else 64) for i in range(5))

    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        for layer in self.convs[:4]:
            kept.append(functional.leaky_relu(layer(torch.cat(kept, 1)), 0.2))
        return self.convs[4](torch.cat(kept, 1))


class Esrgan(nn.Module):
    """RRDBNet of ESRGAN (Wang et al., 2018): 23 blocks, 64 channels, times 4."""

    def __init__(self) -> None:
        super().__init__()
        triple = [Residual(nn.Sequential(*(Residual(DenseBlock(), 0.2) for _ in range(3))), 0.2) for _ in range(23)]
        self.first, self.body = bare(3, 64), Residual(nn.Sequential(*triple, bare(64, 64)))
        self.up = nn.ModuleList([bare(64, 64), bare(64, 64)])
        self.last = nn.Sequential(bare(64, 64), nn.LeakyReLU(0.2), bare(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.first(x))
        for layer in self.up:
            x = functional.leaky_relu(layer(functional.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.last(x)


# -- dense prediction


class PoseNet(nn.Module):
    """Papandreou et al., 2018: MobileNet v1 at stride 16 and four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mobilenet_v1(3, last_stride=1)
        self.heads = nn.ModuleList(bare(1024, outputs, 1) for outputs in (17, 34, 32, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        return [head(x).sigmoid() if index == 0 else head(x) for index, head in enumerate(self.heads)]


class DeepLabV3Plus(nn.Module):
    """Chen et al., 2018, on a backbone that gives 24 channels at stride 4 and 320 at stride 16; 21 classes."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.one = conv(320, 256, 1)
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Conv2d(320, 256, 3, padding=r, dilation=r, bias=False), nn.BatchNorm2d(256), nn.ReLU())
            for r in (6, 12, 18)
        )
        self.pooled = conv(320, 256, 1)
        self.joined, self.low = conv(1280, 256, 1), conv(24, 48, 1)
        self.last = nn.Sequential(conv(304, 256), conv(256, 256), bare(256, 21, 1))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.backbone(x)
        pooled = self.pooled(functional.adaptive_avg_pool2d(high, 1)).expand(-1, -1, *high.shape[-2:])
        y = self.joined(torch.cat([self.one(high), *(layer(high) for layer in self.wide), pooled], 1))
        y = functional.interpolate(y, low.shape[-2:], mode="bilinear", align_corners=True)
        y = self.last(torch.cat([y, self.low(low)], 1))
        return functional.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True)


class HrNet(nn.Module):
    """timm's HRNet (Wang et al., 2019) without its classifier: keypoints from the finest branch, or from all joined."""

    def __init__(self, timm_model: Any, outputs: int, *, joined: int = 0) -> None:
        super().__init__()
        self.net, self.joined = timm_model, joined
        for name in ("incre_modules", "downsamp_modules", "final_layer", "classifier"):
            setattr(timm_model, name, None)
        last = timm_model.stage4[-1]
        width = last.num_in_chs[0]
        if not joined:
            last.fuse_layers = last.fuse_layers[:1]
        self.head = (
            nn.Sequential(conv(joined, joined, 1), bare(joined, outputs, 1)) if joined else bare(width, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        branches = net.stages(net.act2(net.bn2(net.conv2(net.act1(net.bn1(net.conv1(x)))))))
        if not self.joined:
            return self.head(branches[0])
        size = branches[0].shape[-2:]
        up = [functional.interpolate(y, size, mode="bilinear", align_corners=False) for y in branches[1:]]
        return self.head(torch.cat([branches[0], *up], 1))
