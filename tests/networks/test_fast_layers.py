"""The convolution against PyTorch's own, where it goes another way, and gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmreg.networks.fast_layers import Conv3d, InstanceNorm3d, call_with_checkpointing, choose_memory_format


def _pair(incoming: int, **options: int | bool) -> tuple[Conv3d, nn.Conv3d]:
    torch.manual_seed(0)
    ours, plain = Conv3d(incoming, 6, 3, padding=1, **options), nn.Conv3d(incoming, 6, 3, padding=1, **options)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def _gradients(output: Tensor, conv: nn.Module, images: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [*images, *conv.parameters()]))


@pytest.mark.parametrize("shape", [(1, 4, 6, 5, 7), (2, 4, 6, 5, 7), (1, 3, 6, 5, 7), (1, 4, 80, 80, 2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"bias": False}], ids=str)
def test_it_is_pytorchs_convolution(shape: tuple[int, ...], options: dict) -> None:
    ours, plain = _pair(shape[1], **options)
    image = torch.randn(shape, requires_grad=True)
    torch.testing.assert_close(ours(image), plain(image), rtol=1e-5, atol=1e-5)
    for actual, expected in zip(
        _gradients(ours(image), ours, [image]), _gradients(plain(image), plain, [image]), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_under_autocast_it_computes_in_bfloat16() -> None:
    ours, plain = _pair(4)
    image = torch.randn(1, 4, 6, 5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = ours(image), plain(image)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("affine", [True, False])
def test_instance_normalization_is_pytorchs(affine: bool) -> None:
    ours, plain = InstanceNorm3d(3, affine=affine), nn.InstanceNorm3d(3, affine=affine)
    if affine:
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
    plain.load_state_dict(ours.state_dict())
    features = torch.randn(2, 3, 4, 5, 6) * 3 + 1
    torch.testing.assert_close(ours(features), plain(features), rtol=1e-4, atol=1e-5)


def test_the_memory_format_changes_no_number() -> None:
    network = nn.Sequential(Conv3d(2, 4, 3, padding=1), Conv3d(4, 2, 3, padding=1))
    image = torch.randn(1, 2, 6, 6, 6)
    before, weights = network(image), {name: value.clone() for name, value in network.state_dict().items()}
    choose_memory_format(network, torch.device("cpu"))
    torch.testing.assert_close(network(image), before, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_parts_are_convolved_as_their_concatenation() -> None:
    ours, plain = _pair(7)
    parts = [torch.randn(1, channels, 4, 5, 6, requires_grad=True) for channels in (4, 2, 1)]
    sum_of_parts, convolution = ours.sum_over(parts), plain(torch.cat(parts, dim=1))
    torch.testing.assert_close(sum_of_parts, convolution, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(
        _gradients(sum_of_parts, ours, parts), _gradients(convolution, plain, parts), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("when", [True, False])
def test_the_function_is_called_again_in_the_backward_pass_only_if_asked(when: bool) -> None:
    calls: list[Tensor] = []

    def cube(values: Tensor) -> Tensor:
        calls.append(values)
        return values**3

    inputs = torch.tensor([1.0, 2.0], requires_grad=True)
    output = call_with_checkpointing(cube, inputs, when=when)
    assert torch.equal(output, torch.tensor([1.0, 8.0]))
    assert len(calls) == 1
    output.sum().backward()
    assert len(calls) == (2 if when else 1)
    assert torch.equal(inputs.grad, torch.tensor([3.0, 12.0]))
