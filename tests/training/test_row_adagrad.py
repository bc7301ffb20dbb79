import copy

import numpy as np
import torch

from pyterrier_mvret.training.row_adagrad import RowAdagrad, clipped


def test_rows_move_as_by_definition_and_the_rest_as_by_adamw():
    rng = np.random.default_rng(0)
    table = torch.nn.Embedding(7, 3, sparse=True)
    other, alone = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    alone.load_state_dict(copy.deepcopy(other.state_dict()))
    optimiser = RowAdagrad([*table.parameters(), *other.parameters()], lr=0.1)
    adamw = torch.optim.AdamW(alone.parameters(), lr=0.1)
    expected, sums = table.weight.detach().numpy().copy(), np.zeros(7)
    for _ in range(4):
        rows, factor = torch.from_numpy(rng.integers(0, 7, 4)), torch.from_numpy(rng.normal(size=(4, 3))).float()
        optimiser.zero_grad()
        adamw.zero_grad()
        ((table(rows) * factor).sum() + other(factor).sum()).backward()
        alone(factor).sum().backward()
        gradient = np.zeros((7, 3))
        np.add.at(gradient, rows.numpy(), factor.numpy())
        optimiser.step()
        adamw.step()
        sums += (gradient**2).mean(1)
        used = np.unique(rows.numpy())
        expected[used] -= 0.1 * gradient[used] / np.sqrt(sums[used])[:, None]
        np.testing.assert_allclose(table.weight.detach(), expected, atol=1e-5)
    torch.testing.assert_close(other.weight, alone.weight)


def test_a_state_goes_on():
    tables = [torch.nn.Embedding(5, 2, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    first, second = (RowAdagrad(table.parameters(), lr=0.1) for table in tables)
    tables[0](torch.tensor([1, 2])).sum().backward()
    first.step()
    tables[1].load_state_dict(tables[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for table, optimiser in zip(tables, (first, second), strict=True):
        optimiser.zero_grad()
        table(torch.tensor([2, 3])).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight)


def test_sparse_gradients_are_clipped_as_dense_ones():
    tables = [torch.nn.Embedding(5, 2, sparse=sparse) for sparse in (True, False)]
    bias = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for table, one in zip(tables, bias, strict=True):
        (table(torch.tensor([1, 1, 4])).sum() * 3 + (one * 2).sum()).backward()
    norm = clipped([tables[0].weight, bias[0]], 1.0)
    expected = torch.nn.utils.clip_grad_norm_([tables[1].weight, bias[1]], 1.0)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(tables[0].weight.grad.to_dense(), tables[1].weight.grad)
    torch.testing.assert_close(bias[0].grad, bias[1].grad)
