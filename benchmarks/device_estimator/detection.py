"""Detectors of the measured table, with random weights: see architectures.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.device_estimator.architectures import Residual, bare, conv


class Csp(nn.Module):
    """Cross-stage partial block (Wang et al., 2020) with `depth` bottlenecks at half the width."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.left, self.right = conv(inputs, half, 1, act=nn.SiLU), conv(inputs, half, 1, act=nn.SiLU)
        wrap: Any = Residual if shortcut else nn.Sequential
        bottleneck = [
            nn.Sequential(conv(half, half, 1, act=nn.SiLU), conv(half, half, act=nn.SiLU)) for _ in range(depth)
        ]
        self.body, self.out = nn.Sequential(*(wrap(b) for b in bottleneck)), conv(2 * half, outputs, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.body(self.left(x)), self.right(x)], 1))


class Pyramid(nn.Module):
    """Spatial pyramid pooling: side by side (YOLOX) or one after the other (YOLOv5)."""

    def __init__(self, width: int, *, chained: bool) -> None:
        super().__init__()
        self.first, self.last = conv(width, width // 2, 1, act=nn.SiLU), conv(2 * width, width, 1, act=nn.SiLU)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in ((5, 5, 5) if chained else (5, 9, 13)))
        self.chained = chained

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for pool in self.pools:
            kept.append(pool(kept[-1 if self.chained else 0]))
        return self.last(torch.cat(kept, 1))


class Focus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return torch.cat(corners, 1)


class Yolo(nn.Module):
    """YOLOX (Ge et al., 2021) and YOLOv5 (Ultralytics): one backbone and neck, decoupled or single-layer heads."""

    def __init__(self, width: int, depths: Sequence[int], *, decoupled: bool) -> None:
        super().__init__()
        w = [width * 2**i for i in range(5)]
        silu = {"act": nn.SiLU}
        d0, d1, d2, d3, neck = depths
        first = (
            nn.Sequential(Focus(), conv(12, w[0], **silu))
            if decoupled
            else nn.Sequential(nn.Conv2d(3, w[0], 6, 2, 2, bias=False), nn.BatchNorm2d(w[0]), nn.SiLU())
        )
        self.p3 = nn.Sequential(
            first,
            conv(w[0], w[1], 3, 2, **silu),
            Csp(w[1], w[1], d0),
            conv(w[1], w[2], 3, 2, **silu),
            Csp(w[2], w[2], d1),
        )
        self.p4 = nn.Sequential(conv(w[2], w[3], 3, 2, **silu), Csp(w[3], w[3], d2))
        spp, csp = Pyramid(w[4], chained=not decoupled), Csp(w[4], w[4], d3, shortcut=not decoupled)
        self.p5 = nn.Sequential(conv(w[3], w[4], 3, 2, **silu), *((spp, csp) if decoupled else (csp, spp)))
        self.lateral5, self.lateral4 = conv(w[4], w[3], 1, **silu), conv(w[3], w[2], 1, **silu)
        self.up4, self.up3 = Csp(w[4], w[3], neck, shortcut=False), Csp(w[3], w[2], neck, shortcut=False)
        self.down3, self.down4 = conv(w[2], w[2], 3, 2, **silu), conv(w[3], w[3], 3, 2, **silu)
        self.out4, self.out5 = Csp(w[3], w[3], neck, shortcut=False), Csp(w[4], w[4], neck, shortcut=False)
        self.heads = nn.ModuleList(Head(c, w[2]) if decoupled else bare(c, 255, 1) for c in w[2:])

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.p3(x)
        c4 = self.p4(c3)
        n5 = self.lateral5(self.p5(c4))
        n4 = self.lateral4(self.up4(torch.cat([functional.interpolate(n5, scale_factor=2.0), c4], 1)))
        f3 = self.up3(torch.cat([functional.interpolate(n4, scale_factor=2.0), c3], 1))
        f4 = self.out4(torch.cat([self.down3(f3), n4], 1))
        f5 = self.out5(torch.cat([self.down4(f4), n5], 1))
        return [head(f) for head, f in zip(self.heads, (f3, f4, f5), strict=True)]


class Head(nn.Module):
    """YOLOX's decoupled head: classes, box and objectness of 80 classes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stem = conv(inputs, width, 1, act=nn.SiLU)
        self.towers = nn.ModuleList(
            nn.Sequential(*(conv(width, width, act=nn.SiLU) for _ in range(2))) for _ in range(2)
        )
        self.classes, self.box, self.objectness = bare(width, 80, 1), bare(width, 4, 1), bare(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        classes, box = (tower(x) for tower in self.towers)
        return torch.cat([self.box(box), self.objectness(box).sigmoid(), self.classes(classes).sigmoid()], 1)


def leaky(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return conv(inputs, outputs, kernel, stride, act=lambda: nn.LeakyReLU(0.1))


class Elan(nn.Module):
    """Efficient layer aggregation (Wang et al., 2022), the tiny form."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.left, self.right = leaky(inputs, width, 1), leaky(inputs, width, 1)
        self.third, self.fourth, self.out = leaky(width, width), leaky(width, width), leaky(4 * width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)
        third = self.third(right)
        return self.out(torch.cat([self.fourth(third), third, right, self.left(x)], 1))


class YoloV7Tiny(nn.Module):
    """Wang et al., 2022, the smallest configuration."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.p3 = nn.Sequential(leaky(3, 32, 3, 2), leaky(32, 64, 3, 2), Elan(64, 32), pool, Elan(64, 64))
        self.p4, self.p5 = nn.Sequential(pool, Elan(128, 128)), nn.Sequential(pool, Elan(256, 256))
        self.side, self.main = leaky(512, 256, 1), leaky(512, 256, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (13, 9, 5))
        self.pooled, self.spp = leaky(1024, 256, 1), leaky(512, 256, 1)
        self.lateral5, self.route4, self.up4 = leaky(256, 128, 1), leaky(256, 128, 1), Elan(256, 64)
        self.lateral4, self.route3, self.up3 = leaky(128, 64, 1), leaky(128, 64, 1), Elan(128, 32)
        self.down3, self.out4 = leaky(64, 128, 3, 2), Elan(256, 64)
        self.down4, self.out5 = leaky(128, 256, 3, 2), Elan(512, 128)
        self.heads = nn.ModuleList(nn.Sequential(leaky(c, 2 * c), bare(2 * c, 255, 1)) for c in (64, 128, 256))

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.p3(x)
        c4 = self.p4(c3)
        c5 = self.p5(c4)
        y = self.main(c5)
        n5 = self.spp(torch.cat([self.pooled(torch.cat([*(pool(y) for pool in self.pools), y], 1)), self.side(c5)], 1))
        up = functional.interpolate(self.lateral5(n5), scale_factor=2.0)
        n4 = self.up4(torch.cat([self.route4(c4), up], 1))
        up = functional.interpolate(self.lateral4(n4), scale_factor=2.0)
        n3 = self.up3(torch.cat([self.route3(c3), up], 1))
        m4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        m5 = self.out5(torch.cat([self.down4(m4), n5], 1))
        return [head(f) for head, f in zip(self.heads, (n3, m4, m5), strict=True)]
