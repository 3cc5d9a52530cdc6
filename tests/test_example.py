"""Inputs for a trial are those that were asked, whatever their kind."""

import pytest
import torch

from runtime.conformance import Fitted
from runtime.contents import pieces_of
from runtime.datatypes import NAMES
from runtime.example import COPIED, terms


def asked(x: torch.Tensor) -> Fitted:
    return Fitted(list(pieces_of({"x": x}).values()), len(x), (tuple(x.shape[1:]),))


@pytest.mark.parametrize("name", ["BOOL", "BF16", "FP16", "FP32", "INT64", "UINT8"])
def test_its_rows_come_over_and_over(name) -> None:
    dtype = next(dtype for dtype, other in NAMES.items() if other == name)
    x = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 0, 7]]).to(dtype)
    (made,) = terms(asked(x), 8).inputs(torch.device("cpu"))
    assert made.dtype == dtype
    assert made.is_contiguous()
    assert torch.equal(made, torch.cat([x, x, x])[:8])


def test_of_many_bytes_one_row_is_kept() -> None:
    x = torch.rand(4, COPIED)
    kept = terms(asked(x), 4)
    assert len(kept.example[0].data) == 4 * COPIED
    (made,) = kept.inputs(torch.device("cpu"))
    assert torch.equal(made, x[:1].expand(4, -1))


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)])
def test_what_has_no_rows_is_kept_whole(shape) -> None:
    x = torch.rand(shape)
    fitted = Fitted(list(pieces_of({"x": x}).values()), 1, (shape,))
    (made,) = terms(fitted, 0).inputs(torch.device("cpu"))
    assert torch.equal(made, x)


def test_it_outlives_the_request() -> None:
    x = torch.ones(1, 3)
    kept = terms(asked(x), 1)
    x.zero_()
    assert torch.equal(kept.inputs(torch.device("cpu"))[0], torch.ones(1, 3))
