"""Real-time segmentation networks of the measured table, with random weights: see architectures.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.device_estimator.architectures import bare, conv


def resized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def linear(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    """Convolution and batch normalization."""
    return conv(inputs, outputs, kernel, stride, act=nn.Identity)


class Block(nn.Module):
    """ResNet's basic block; `wide` > 1: its bottleneck, with that expansion."""

    def __init__(self, inputs: int, width: int, stride: int = 1, *, wide: int = 1, last: bool = True) -> None:
        super().__init__()
        self.body = (
            nn.Sequential(conv(inputs, width, 3, stride), linear(width, width, 3))
            if wide == 1
            else nn.Sequential(conv(inputs, width, 1), conv(width, width, 3, stride), linear(width, width * wide))
        )
        same = inputs == width * wide and stride == 1
        self.short = nn.Identity() if same else linear(inputs, width * wide, 1, stride)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.short(x)
        return y.relu() if self.last else y


def stage(inputs: int, width: int, depth: int, stride: int = 1) -> nn.Module:
    """Basic blocks; the last one without its ReLU."""
    return nn.Sequential(
        *(Block(inputs if i == 0 else width, width, stride if i == 0 else 1, last=i < depth - 1) for i in range(depth))
    )


class Pre(nn.Module):
    """Normalization, ReLU and convolution, in this order."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


POOLS = ((5, 2, 2), (9, 4, 4), (17, 8, 8))


class Context(nn.Module):
    """Deep aggregation pyramid pooling: one scale after another (DDRNet), or all at once in groups (PIDNet)."""

    def __init__(self, inputs: int, width: int, outputs: int, *, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        pools = [nn.AvgPool2d(*pool) for pool in POOLS] + [nn.AdaptiveAvgPool2d(1)]
        self.scales = nn.ModuleList(nn.Sequential(pool, Pre(inputs, width)) for pool in pools)
        self.first, self.short = Pre(inputs, width), Pre(inputs, outputs)
        self.process = (
            Pre(4 * width, 4 * width, 3, 4) if parallel else nn.ModuleList(Pre(width, width, 3) for _ in pools)
        )
        self.joined = Pre(5 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        scales = [resized(scale(x), x) for scale in self.scales]
        if self.parallel:
            kept = [first, self.process(torch.cat([y + first for y in scales], 1))]
        else:
            kept = [first]
            for process, y in zip(self.process, scales, strict=True):
                kept.append(process(y + kept[-1]))
        return self.joined(torch.cat(kept, 1)) + self.short(x)


def head(inputs: int, width: int, classes: int = 19) -> nn.Module:
    return nn.Sequential(Pre(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU(), bare(width, classes, 1))


def stem() -> nn.Module:
    return nn.Sequential(conv(3, 32, 3, 2), conv(32, 32, 3, 2))


class DdrNet23Slim(nn.Module):
    """Hong et al., 2021; 19 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(stem(), stage(32, 32, 2), nn.ReLU(), stage(32, 64, 2, 2), nn.ReLU())
        self.low3, self.low4 = stage(64, 128, 2, 2), stage(128, 256, 2, 2)
        self.low5 = Block(256, 256, 2, wide=2, last=False)
        self.high3, self.high4, self.high5 = stage(64, 64, 2), stage(64, 64, 2), Block(64, 64, wide=2, last=False)
        self.up3, self.up4 = linear(128, 64), linear(256, 64)
        self.down3 = linear(64, 128, 3, 2)
        self.down4 = nn.Sequential(conv(64, 128, 3, 2), linear(128, 256, 3, 2))
        self.context, self.head = Context(512, 128, 128, parallel=False), head(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        low, high = self.low3(x), self.high3(x)
        low, high = low + self.down3(high.relu()), high + resized(self.up3(low.relu()), high)
        low, high = self.low4(low.relu()), self.high4(high.relu())
        low, high = low + self.down4(high.relu()), high + resized(self.up4(low.relu()), high)
        high = self.high5(high.relu())
        return self.head(high + resized(self.context(self.low5(low.relu())), high))


class Guided(nn.Module):
    """PIDNet's pixel-attention-guided fusion."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.x, self.y = linear(width, inner), linear(width, inner)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        alike = (self.x(x) * resized(self.y(y), x)).sum(1, keepdim=True).sigmoid()
        return (1 - alike) * x + alike * resized(y, x)


class PidNetSmall(nn.Module):
    """Xu et al., 2023; 19 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(stem(), stage(32, 32, 2), nn.ReLU(), stage(32, 64, 2, 2), nn.ReLU())
        self.i3, self.i4 = stage(64, 128, 3, 2), stage(128, 256, 3, 2)
        self.i5 = nn.Sequential(Block(256, 256, 2, wide=2), Block(512, 256, wide=2, last=False))
        self.p3, self.p4, self.p5 = stage(64, 64, 2), stage(64, 64, 2), Block(64, 64, wide=2, last=False)
        self.d3, self.d4 = Block(64, 32, last=False), Block(32, 32, wide=2, last=False)
        self.d5 = Block(64, 64, wide=2, last=False)
        self.compress3, self.compress4 = linear(128, 64), linear(256, 64)
        self.diff3, self.diff4 = linear(128, 32, 3), linear(256, 64, 3)
        self.guide3, self.guide4 = Guided(64, 32), Guided(64, 32)
        self.context = Context(512, 96, 128, parallel=True)
        self.left, self.right, self.head = linear(128, 128), linear(128, 128), head(128, 128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        p, i, d = self.p3(x), self.i3(x).relu(), self.d3(x)
        p, d = self.guide3(p, self.compress3(i)), d + resized(self.diff3(i), d)
        i, p, d = self.i4(i).relu(), self.p4(p.relu()), self.d4(d.relu())
        p, d = self.guide4(p, self.compress4(i)), d + resized(self.diff4(i), d)
        p, d = self.p5(p.relu()), self.d5(d.relu())
        i = resized(self.context(self.i5(i)), p)
        edge = d.sigmoid()
        return self.head(self.left((1 - edge) * i + p) + self.right(i + edge * p))


class BiSeNet(nn.Module):
    """Yu et al., 2018, on ResNet-18; 12 classes. `backbone` gives 256 channels at stride 16 and 512 at 32."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.spatial = nn.Sequential(conv(3, 64, 3, 2), conv(64, 128, 3, 2), conv(128, 256, 3, 2))
        self.attend = nn.ModuleList(linear(c, c) for c in (256, 512))
        self.fuse, self.squeeze, self.excite = conv(1024, 12, 3), bare(12, 12, 1), bare(12, 12, 1)
        self.last = bare(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        spatial = self.spatial(x)
        one, two = self.backbone(x)
        tail = two.mean((2, 3), keepdim=True)
        one, two = (
            y * layer(y.mean((2, 3), keepdim=True)).sigmoid() for layer, y in zip(self.attend, (one, two), strict=True)
        )
        y = self.fuse(torch.cat([spatial, resized(one, spatial), resized(two * tail, spatial)], 1))
        gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.last(functional.interpolate(y * gate + y, scale_factor=8, mode="bilinear"))
