import pytest
import torch
from torch import nn

from nufed.common.steps.convolutions import ConvolutionsAsProducts, _as_product

SHAPE = (9, 8, 7)
LAYERS = [
    (nn.Conv1d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv2d, {"kernel_size": (3, 2), "stride": (1, 3), "padding": (2, 1)}),
    (nn.Conv2d, {"kernel_size": 5, "padding": "valid", "bias": False}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    (nn.Conv3d, {"kernel_size": 2, "stride": 2}),
]
LEFT = [
    (nn.Conv2d, {"kernel_size": 3, "dilation": 2}),
    (nn.Conv2d, {"kernel_size": 3, "groups": 2}),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same"}),
]


def results(layer, inputs, *, as_products):
    """Return the outputs, their gradient and the product of its Jacobian with a vector."""
    inputs = inputs.clone().requires_grad_()
    point = [inputs, *layer.parameters()]
    if as_products:
        with ConvolutionsAsProducts():
            outputs = layer(inputs)
    else:
        outputs = layer(inputs)
    gradient = torch.autograd.grad(outputs.pow(3).sum(), point, create_graph=True)
    return [outputs, *gradient, *torch.autograd.grad(sum(part.sin().sum() for part in gradient), point)]


@pytest.mark.parametrize(("kind", "options"), [*LAYERS, *LEFT])
def test_values_and_derivatives_are_those_of_a_convolution(kind, options):
    torch.manual_seed(0)
    num_axes = int(kind.__name__[4])
    layer, inputs = kind(4, 6, **options).double(), torch.randn(2, 4, *SHAPE[:num_axes]).double()

    for found, right in zip(
        results(layer, inputs, as_products=True), results(layer, inputs, as_products=False), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("kind", "options"), LEFT)
def test_what_is_no_single_product_is_left_to_pytorch(kind, options):
    layer = kind(4, 6, **options)
    assert (
        _as_product(
            torch.zeros(2, 4, 9, 8), layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        is None
    )
    assert _as_product(torch.zeros(4, 9, 8), torch.zeros(6, 4, 3, 3)) is None
