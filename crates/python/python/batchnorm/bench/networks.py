"""Whole training steps before and after `convert` and `fuse`."""

import copy

import torch
from torch import nn
from torch.nn import functional

import batchnorm.torch as bt

from .timing import header, medians, row


def conv_bn(inputs, outputs, kernel=1, stride=1, groups=1, activation=nn.ReLU):
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    after = [activation(inplace=True)] if activation else []
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *after)


class Basic(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3, activation=None)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, activation=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class Inverted(nn.Module):
    """The block of MobileNet-v2."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        layers = [conv_bn(inputs, hidden)] if expand > 1 else []
        layers += [conv_bn(hidden, hidden, 3, stride, hidden), conv_bn(hidden, outputs, activation=None)]
        self.layers, self.same = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.same else y


class Dense(nn.Module):
    """A layer of DenseNet, whose normalization comes first."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return torch.cat([x, self.layers(x)], 1)


def head(channels):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)


def resnet18():
    layers, inputs = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for outputs in 64, 128, 256, 512:
        layers += [Basic(inputs, outputs, 1 if outputs == 64 else 2), Basic(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, *head(512))


def mobilenet_v2():
    """With ReLU in place of ReLU6."""
    layers, inputs = [conv_bn(3, 32, 3, 2)], 32
    for expand, outputs, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(count):
            layers.append(Inverted(inputs, outputs, stride if i == 0 else 1, expand))
            inputs = outputs
    return nn.Sequential(*layers, conv_bn(320, 1280), *head(1280))


def densenet():
    """The first two blocks of DenseNet-121."""
    layers, channels, growth = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64, 32
    for count in 6, 12:
        for _ in range(count):
            layers.append(Dense(channels, growth))
            channels += growth
        half = nn.Conv2d(channels, channels // 2, 1, bias=False)
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), half, nn.AvgPool2d(2)]
        channels //= 2
    return nn.Sequential(*layers, *head(channels))


NETWORKS = {"ResNet-18": resnet18, "MobileNet-v2": mobilenet_v2, "DenseNet-121, two blocks": densenet}


def training_step(model, memory_format, batch=8, size=128):
    model = model.to(memory_format=memory_format)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=memory_format)
    target = torch.randint(1000, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def without_batch_norm(model):
    """The same network with nothing in the places of batch normalization, to find its share of the time."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


def networks(options):
    print("Milliseconds of a training step, 8 images of 128×128, and what part of PyTorch's time that is.")
    header("network", "layout", "PyTorch", "without batch normalization", "convert", "fuse")
    for name, make in NETWORKS.items():
        for layout, memory_format in ("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last):
            model = make()
            variants = {
                "PyTorch": model,
                "without": without_batch_norm(copy.deepcopy(model)),
                "convert": bt.convert(copy.deepcopy(model)),
                "fuse": bt.fuse(copy.deepcopy(model)),
            }
            calls = {who: training_step(variant, memory_format) for who, variant in variants.items()}
            ms = medians(calls, 4 * options.seconds)
            eager = ms["PyTorch"]
            parts = [f"{ms[who]:.1f} ({ms[who] / eager:.3f})" for who in ("without", "convert", "fuse")]
            row(name, layout, f"{eager:.1f}", *parts)


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """The memory of the tensors that the backward pass keeps at the end of the forward pass, each once."""

    def __init__(self):
        self.sizes = {}
        super().__init__(self.pack, lambda kept: kept)

    def pack(self, kept):
        storage = kept.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return kept


def darknet():
    """Convolutions with leaky ReLU, as in the networks of YOLO."""
    layers, inputs = [], 3
    for outputs in 32, 32, 64, 64, 128, 128:
        layers.append(conv_bn(inputs, outputs, 3, activation=lambda inplace: nn.LeakyReLU(0.1, inplace)))
        inputs = outputs
    return nn.Sequential(*layers, *head(inputs))


def keep_outputs(model):
    """Where nothing changes y in place: after the last convolution of each of MobileNet's blocks, and if fused."""
    for module in model.modules():
        if isinstance(module, Inverted):
            module.layers[-1][1].memory = "output"
        if isinstance(module, bt.BatchNormLeakyReLU2d):
            module.memory = "output"
    return model


def memory(options):
    print("MB at the peak of a training step, 8 images of 128×128: what the backward pass keeps, parameters included.")
    header("network", "PyTorch", 'with memory="output"')
    mobilenet, leaky = mobilenet_v2(), darknet()
    rows = {
        "MobileNet-v2, converted": (mobilenet, keep_outputs(bt.convert(copy.deepcopy(mobilenet)))),
        "6 convolutions with leaky ReLU, fused": (leaky, keep_outputs(bt.fuse(leaky))),
    }
    for name, variants in rows.items():
        cells = []
        for variant in variants:
            kept = Kept()
            with kept:
                loss = variant(torch.randn(8, 3, 128, 128)).sum()
            cells.append(f"{sum(kept.sizes.values()) / 1e6:.1f}")
            loss.backward()
        row(name, *cells)
