"""Two optimizers in one: each has its parameters, a scheduler drives both, and a resumed run goes on bit by
bit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.optim import MUON_SCALE, MuonWithAdamW, make_optimizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.score = nn.Linear(8, 1, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.score(self.norm(self.hidden(self.embed(ids)))).mean()
        return out


def steps(net: Net, optimizer: Any, scheduler: Any, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        net(torch.arange(step % 4, step % 4 + 8)).pow(2).backward()
        optimizer.step()
        scheduler.step()


def start() -> tuple[Net, MuonWithAdamW, Any]:
    torch.manual_seed(1)
    net = Net()
    optimizer = MuonWithAdamW(net, 0.01, 0.01)
    return net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def test_hidden_matrices_go_to_muon_and_everything_else_to_adamw() -> None:
    net, optimizer, _ = start()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert groups == [
        ["hidden.weight"],
        ["embed.weight", "hidden.bias", "norm.weight", "norm.bias", "score.weight"],
    ]


def test_a_scheduler_drives_both_also_after_loading() -> None:
    net, optimizer, scheduler = start()
    steps(net, optimizer, scheduler, 0, 3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.01 * MUON_SCALE / 4, 0.01 / 4]
    )
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(net, optimizer, scheduler, 3, 4)
    rates = [inner.param_groups[0]["lr"] for inner in (optimizer.muon, optimizer.adamw)]
    assert rates == pytest.approx([0.01 * MUON_SCALE / 5, 0.01 / 5])


def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit() -> None:
    whole, optimizer, scheduler = start()
    steps(whole, optimizer, scheduler, 0, 3)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    steps(whole, optimizer, scheduler, 3, 6)
    resumed, optimizer, scheduler = start()
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    steps(resumed, optimizer, scheduler, 3, 6)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_the_kind_decides() -> None:
    config = OptimizerConfig(learning_rate=0.1, batch=1, steps=1)
    assert isinstance(make_optimizer(Net(), config), torch.optim.AdamW)
    assert isinstance(make_optimizer(Net(), config.model_copy(update={"kind": "muon"})), MuonWithAdamW)
