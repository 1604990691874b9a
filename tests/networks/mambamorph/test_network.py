"""MambaMorph's parts: the Mamba block against transformers'."""

from __future__ import annotations

import torch
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from llmreg.networks.mambamorph.network import Mamba, MambaMorph, MambaStage
from llmreg.networks.network_registry import network_settings


def test_a_mamba_block_is_the_one_of_transformers() -> None:
    torch.manual_seed(0)
    block = Mamba(24)
    sizes = {"hidden_size": 24, "state_size": 16, "expand": 2, "conv_kernel": 4, "time_step_rank": 2}
    mixer = MambaMixer(MambaConfig(**sizes, use_bias=False, use_associative_scan=False), layer_idx=0).eval()
    mixer.load_state_dict(block.state_dict(), strict=True)
    tokens = torch.randn(2, 45, 24)
    torch.testing.assert_close(block(tokens), mixer(tokens), rtol=1e-4, atol=1e-5)


def test_steps_start_between_a_thousandth_and_a_tenth() -> None:
    steps = torch.nn.functional.softplus(Mamba(96).dt_proj.bias)
    assert 0.9e-3 < steps.min() < steps.max() < 0.11


def test_tokens_see_those_before_them_x_fastest() -> None:
    torch.manual_seed(0)
    stage, tokens = MambaStage(24), torch.randn(1, 2, 3, 4, 24)
    changed = tokens.clone()
    changed[0, 1, 0, 2] = torch.randn(24)
    with torch.no_grad():
        differ = (stage(changed) - stage(tokens)).abs().amax(-1)[0] > 1e-7
    changed_token = 1 * 12 + 0 * 4 + 2
    assert not differ.flatten()[:changed_token].any()
    assert differ.flatten()[changed_token:].all()


def test_computing_features_twice_changes_no_gradient() -> None:
    torch.manual_seed(0)
    network = MambaMorph(network_settings("mambamorph"), (16, 16, 16))
    torch.nn.init.normal_(network.decoder.head.weight, std=0.05)
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 16)
    gradients = []
    for recompute in (False, True):
        network.recompute = recompute
        loss = (network(moving, fixed) - 1).square().mean()
        gradients.append(torch.autograd.grad(loss, list(network.features.parameters())))
    for expected, actual in zip(*gradients, strict=True):
        assert expected.any()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
