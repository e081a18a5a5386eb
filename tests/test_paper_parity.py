"""The published G-Loss code, number for number: 12 cases it computed in float64."""

import numpy as np
import pytest
import torch
from conftest import AUTO_AND_KERNELS, shared_file

from gloss_kernels import GLoss

#                 probabilities and loss (absolute), gradient (relative to its largest entry)
TOLERANCE = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-4, 1e-2)}


@pytest.mark.parametrize("backend", [*AUTO_AND_KERNELS, "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", range(12))
def test_paper_parity(case: int, dtype: torch.dtype, backend: str) -> None:
    with np.load(shared_file("oracle/paper_parity.npz")) as file:
        oracle = {key[3:]: torch.as_tensor(file[key]) for key in file.files if key.startswith(f"{case:02d}_")}
    x = oracle["x"].to(dtype).requires_grad_()
    hidden = torch.arange(len(x)) >= oracle["num_labeled"]
    loss_fn = GLoss.paper(int(oracle["num_classes"]), sigma=float(oracle["sigma"]), class_weight=oracle["class_weight"])
    loss_fn.backend = backend
    loss = loss_fn(x, oracle["y"], hide_mask=hidden)
    loss.backward()

    near, near_grad = TOLERANCE[dtype]
    assert loss.dtype == dtype
    assert loss_fn.last is not None and x.grad is not None
    torch.testing.assert_close(loss_fn.last.probabilities[hidden].double(), oracle["probabilities"], rtol=0, atol=near)
    torch.testing.assert_close(loss.double(), oracle["loss"], rtol=0, atol=near)
    largest = oracle["grad"].abs().max()
    torch.testing.assert_close(x.grad.double() / largest, oracle["grad"] / largest, rtol=0, atol=near_grad)
