"""Small networks with the structure of known ones."""

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def resnet(width=8, classes=10):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def darknet(width=8, classes=10):
    """Convolutions with leaky ReLU."""
    layers = []
    for inputs, outputs in (3, width), (width, width), (width, 2 * width):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


class Functional(nn.Module):
    """Calls functions in place of modules, and has what must not be fused."""

    def __init__(self):
        super().__init__()
        for name in ("relu1", "twice", "add", "scaled", "kept", "hooked"):
            self.add_module(name, nn.BatchNorm1d(4))
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x):
        a = functional.relu(self.relu1(x))
        b = torch.relu(self.twice(a)) + self.twice(x)
        c = (b + self.add(a)).relu()
        d = torch.relu(torch.add(c, self.scaled(b), alpha=2))
        e = self.kept(d)
        return torch.relu(e) + e + torch.relu(self.hooked(e))


def train(model, dtype, steps, batch=8):
    """The losses of some steps."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        x = torch.randn(batch, 3, 12, 12, generator=generator, dtype=torch.float64).to(dtype)
        target = torch.randint(10, (batch,), generator=generator)
        loss = functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)
