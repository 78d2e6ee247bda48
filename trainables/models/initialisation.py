"""How weights start, where PyTorch's own default is not what the papers' code has."""

from torch import nn


def start_convolutions(model: nn.Module) -> None:
    """Draw the weights of every convolution from a normal distribution of variance 2 / (fan out) (Kaiming).

    The fan out is output channels x kernel area, also of a grouped convolution. Biases start from 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def start_linear(layer: nn.Linear, std: float) -> None:
    """Draw a linear layer's weights from a normal distribution of that standard deviation; biases start from 0."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
