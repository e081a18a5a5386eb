"""Properties of the loss, the heuristics for sigma, CorpusGLoss and NeighborIndex, as those of stages.py."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from gloss_kernels import CorpusGLoss, GLoss, NeighborIndex, cosine_topk, g_loss, reference
from gloss_kernels import sigma as heuristics

from .inputs import (
    CONTENTS,
    PLAIN,
    Draw,
    all_finite,
    gradient_fits,
    labels,
    matrix,
    one_of,
    outcome,
    seldom,
    sigma,
    whole,
)
from .stages import SMALLEST_SIGMA, _backend, st_bool, st_fault, st_seed, st_size, st_variant

WRONG = {
    "num_classes": [0, -1, 2.0, None, "3"],
    "n_neighbors": [0, -1, 1.5, "all"],
    "labeled_fraction": [-0.1, 1.1, float("nan"), None],
    "normalization": ["rows", None],
    "alpha": [0.0, 1.0, float("nan")],
    "target": ["mse", None],
    "class_weight": [torch.ones(99), torch.tensor([-1.0, 1, 1]), torch.tensor([float("nan"), 1, 1]), [1.0, 1, 1]],
    "ignore_index": [0.5, None],
    "tol": [0.0, -1.0],
    "max_iter": [0, 1.5],
    "generator": [0, "seed"],
    "backend": ["gpu", None, 3],
}


# ------------------------------------------------------------------------------------------------ loss
def check_g_loss(draw: Draw) -> None:
    n, d, num_classes = draw(st_size), one_of(draw, [1, 2, 7, 16]), 3
    drawn = matrix(draw, n, d)
    y, wrong_labels = labels(draw, n, num_classes)
    s, wrong_sigma = sigma(draw, n, SMALLEST_SIGMA)
    if not wrong_sigma and seldom(draw, 6):
        s = one_of(draw, list(heuristics.HEURISTICS))
    faults = ["embeddings"] * drawn.faulty + ["labels"] * wrong_labels + ["sigma"] * wrong_sigma
    options: dict[str, object] = {"n_neighbors": one_of(draw, [None, None, 1, 3, 30]), "tol": 1e-6}
    if getattr(drawn.x, "dtype", None) == torch.float64:
        options["tol"] = 1e-10  # the sparse solve is held to 1e-8 below
    variant = draw(st_variant)
    if variant == 1:
        options |= {"normalization": "published", "target": "published"}
    elif variant == 2:
        options["alpha"] = one_of(draw, [0.1, 0.9])
    elif variant == 3:
        options["class_weight"] = torch.tensor([0.0, 1.0, 2.5])
    elif variant == 4 and not wrong_labels:
        options["ignore_index"] = -100
        y = torch.where(y == -1, -100, y)
    fault = draw(st_fault)
    classes: object = num_classes
    if fault < len(WRONG):
        name = list(WRONG)[fault]
        faults.append(name)
        value = one_of(draw, WRONG[name])
        if name == "num_classes":
            classes = value
        else:
            options[name] = value
    hide: object = None
    if draw(st_bool):
        hide = torch.from_numpy(np.random.default_rng(draw(st_seed)).random(n) < one_of(draw, [0.3, 0.0, 1.0]))
        if seldom(draw, 12):
            hide = one_of(draw, [hide.long(), hide[None], torch.ones(n + 1, dtype=torch.bool), 0.3])
            faults.append("hide_mask")
    options["backend"] = options.get("backend", _backend(draw)) if "backend" not in faults else options["backend"]

    if drawn.content == "not finite" and options["backend"] == "cuda":
        options["backend"] = "auto"  # code for a GPU does not wait to raise, its loss is NaN

    x = drawn.x.detach().requires_grad_() if not faults else drawn.x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = outcome(lambda: g_loss(x, y, classes, hide, sigma=s, **options), faults)
        if loss is None:
            return
        assert loss.shape == () and loss.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
        all_finite(loss)
        assert loss >= 0
        (grad,) = torch.autograd.grad(loss, x)
    gradient_fits(x, grad)
    if hide is None or isinstance(s, str):
        return
    k = options["n_neighbors"]
    if n and (k is None or n - 1 <= k or _no_ties(drawn.x, k)):
        truth, value = float(_reference_loss(drawn.x, y, hide, s, options)), float(loss.detach())
        near = 1e-8 if x.dtype == torch.float64 else 2e-3
        assert abs(value - truth) <= near * (1 + abs(truth)), f"{value}, not {truth}"


def _no_ties(x: Tensor, k: int) -> bool:
    """Whether the k nearest are the same to rounding, so that the graph is one."""
    c = reference.cosine(x).fill_diagonal_(-torch.inf).sort(dim=1, descending=True).values
    return bool((c[:, k - 1] - c[:, k] > 1e-5).all())


def _reference_loss(x: Tensor, y: Tensor, hide: Tensor, s: float | Tensor, options: dict[str, object]) -> Tensor:
    k = options["n_neighbors"]
    y = torch.where(y == options.get("ignore_index", -1), -1, y)
    x = x.detach().double()
    c = reference.cosine(x)
    width = torch.as_tensor(s, dtype=torch.float64)
    square = width[:, None] * width[None, :] if width.ndim == 1 else width**2
    w = torch.exp((c - 1) / square).fill_diagonal_(0)
    if k is not None and k < len(x) - 1:
        _, j = reference.cosine_topk(x, None, k, True)
        w = w * torch.zeros_like(w).scatter_(1, j, 1.0)
    visible = torch.where(hide, -1, y)
    f, _ = reference.propagate_labels(
        w + w.T, visible, 3, options.get("alpha"), str(options.get("normalization", "row"))
    )
    weight = options.get("class_weight")
    return reference.loss_on_hidden(f, y, hide & (y >= 0), str(options.get("target", "nll")), weight)


def check_gloss_module(draw: Draw) -> None:
    """The hidden documents are drawn: their number is right, and a seeded generator repeats."""
    n = draw(st.integers(1, 24))
    drawn = matrix(draw, n, 5, faults=False, contents=[*PLAIN, "duplicates", "zero rows"])
    y, _ = labels(draw, n, 4, faults=False)
    share = one_of(draw, [0.0, 0.1, 0.5, 0.7, 1.0])
    losses = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(draw(st.just(5)))
        module = GLoss(4, labeled_fraction=share, n_neighbors=one_of(draw, [None]), generator=generator, backend="auto")
        losses.append(float(module(drawn.x, y)))
    assert losses[0] == losses[1]
    assert module.last is not None
    known = int((y >= 0).sum())
    visible = (module.last.probabilities.amax(dim=1) == 1).sum()
    assert int(visible) >= min(known, int(np.ceil(known * share - 1e-6)))


# ----------------------------------------------------------------------------------------------- sigma
def check_sigma_heuristics(draw: Draw) -> None:
    n = draw(st_size)
    drawn = matrix(draw, n, one_of(draw, [1, 2, 16]))
    y, wrong_labels = labels(draw, n, 3)
    if isinstance(y, Tensor) and y.dtype == torch.int64 and y.shape == (n,):
        wrong_labels = False  # any int64 tells classes apart; negative ones are not looked at
    neighbor, wrong = whole(draw, 1, 10**6)
    wrong = wrong and not (isinstance(neighbor, int) and not isinstance(neighbor, bool) and neighbor > 0)
    faults = ["embeddings"] * drawn.faulty
    found = [
        (outcome(lambda: heuristics.sigma_root(drawn.x), faults), ()),
        (outcome(lambda: heuristics.sigma_mst(drawn.x, y), faults + ["labels"] * wrong_labels), ()),
        (outcome(lambda: heuristics.sigma_self_tuning(drawn.x, neighbor), faults + ["neighbor"] * wrong), (n,)),
    ]
    for value, shape in found:
        if value is None:
            continue
        all_finite(value)
        assert value.shape == shape and bool((value >= heuristics.SMALLEST - 1e-9).all()) and bool((value <= 2).all())
    root = found[0][0]
    if root is not None and n > 1:
        distance = (2 - 2 * reference.cosine(drawn.x)).clamp(min=0).sqrt()
        at = torch.triu_indices(n, n, 1)
        truth = (distance[at[0], at[1]].median() / 3).sqrt().clamp(min=heuristics.SMALLEST)
        # sqrt(2 - 2 c) of c near 1: float32's rounding 1e-7 of c is 5e-4 of a distance, and 0.012 of a sigma near 0.01
        assert abs(float(root) - float(truth)) <= 1e-6 + 1e-3 / 3 / max(0.02, float(truth))


# ---------------------------------------------------------------------------------------------- corpus
def check_corpus_gloss(draw: Draw) -> None:
    n, d = draw(st.integers(0, 24)), one_of(draw, [1, 3, 16])
    y, wrong_labels = labels(draw, n, 3)
    if isinstance(y, Tensor) and y.shape == (n + 2,):
        n, wrong_labels = n + 2, False  # they say how many documents there are
    k, wrong_k = whole(draw, 1, n - 1)
    bank_dtype = one_of(draw, [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    options = {
        "num_classes": 3, "n_neighbors": k, "sigma": one_of(draw, [SMALLEST_SIGMA, 0.5, 2.0]),
        "batch_neighbors": draw(st.integers(0, 9)), "bank_dtype": bank_dtype,
        "target": one_of(draw, ["nll", "published"]), "backend": one_of(draw, ["auto", "auto", "reference"]),
    }  # fmt: skip
    faults = ["labels"] * wrong_labels + ["n_neighbors"] * wrong_k
    fault = draw(st_fault)
    wrong = {"sigma": 0.0, "dim": 0, "batch_neighbors": -1, "bank_dtype": torch.int8, "target": "mse", "index": "tree",
             "propagate_every": 0, "backend": "gpu", "class_weight": torch.ones(2), "tol": 0.0}  # fmt: skip
    if fault < len(wrong):
        name = list(wrong)[fault]
        options[name] = wrong[name]
        faults.append(name)
    dim = options.pop("dim", d)
    module = outcome(lambda: CorpusGLoss(y, dim, **options), faults)
    if module is None:
        return
    rows = matrix(draw, n, d)
    if seldom(draw, 4) and n:  # some rows only
        ids = torch.from_numpy(np.random.default_rng(draw(st_seed)).permutation(n)[: draw(st.integers(0, n))])
        rows = matrix(draw, len(ids), d)
    else:
        ids = None
    outcome(lambda: module.refresh(rows.x, ids), ["embeddings"] * rows.faulty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            _step(draw, module, n, d)
        _predict(draw, module, d)


def _step(draw: Draw, module: CorpusGLoss, n: int, d: int) -> None:
    rng = np.random.default_rng(draw(st_seed))
    ids = torch.from_numpy(rng.permutation(n)[: int(rng.integers(0, n + 1))])
    live = matrix(draw, len(ids), d)
    faults = ["embeddings"] * live.faulty
    if not faults and seldom(draw, 12):
        ids = one_of(draw, [ids + n, ids - n - 1, ids.int(), ids[None], torch.cat([ids, ids]), ids.tolist()])
        if isinstance(ids, list) or ids.shape != (len(live.x),) or len(ids) or ids.dtype != torch.int64:
            faults.append("document_ids")
    if not faults and module.bank.num_filled == 0:
        try:
            module(live.x, ids)
        except RuntimeError as error:
            assert "the memory bank is empty" in str(error)
        return
    x = live.x.detach().requires_grad_() if not faults else live.x
    loss = outcome(lambda: module(x, ids), faults)
    if loss is None:
        return
    all_finite(loss)
    assert loss.shape == () and loss >= 0
    (grad,) = torch.autograd.grad(loss, x, allow_unused=True)
    gradient_fits(x, grad)
    f = module.last.probabilities
    assert bool(((f.sum(dim=1) - 1).abs() <= 1e-5).all()) and bool((f >= 0).all())


def _predict(draw: Draw, module: CorpusGLoss, d: int) -> None:
    fresh = matrix(draw, draw(st.integers(0, 5)), d)
    if module.bank.num_filled == 0 and not fresh.faulty:
        return
    found = outcome(lambda: module.predict(fresh.x), ["embeddings"] * fresh.faulty)
    if found is None:
        return
    all_finite(found.probabilities)
    assert bool(((found.probabilities.sum(dim=1) - 1).abs() <= 1e-5).all())
    whole_bank = module.propagate()
    all_finite(whole_bank.probabilities)
    assert whole_bank.probabilities.shape == (len(module.bank), 3)
    assert bool(((whole_bank.probabilities.sum(dim=1) - 1).abs() <= 1e-2).all())
    copy = CorpusGLoss(module.bank.labels.clone(), d, num_classes=3, n_neighbors=module.n_neighbors, sigma=module.sigma,
                       bank_dtype=module.bank.rows.dtype, backend=module.backend)  # fmt: skip
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy.predict(fresh.x).probabilities, module.predict(fresh.x).probabilities)


# ----------------------------------------------------------------------------------------------- index
def check_neighbor_index(draw: Draw) -> None:
    n, d = draw(st.integers(0, 24)), one_of(draw, [1, 3, 16])
    kind = one_of(draw, ["exact", "exact", "exact", "flat", "auto"])
    x, numbers, faulty = _rows(draw, n, d)
    faults = ["embeddings"] * (faulty or n == 0)
    fault = draw(st_fault)
    options: dict[str, object] = {}
    wrong = {"kind": "tree", "recall_target": 0.0, "recall_k": 0, "seed": -1, "memory_limit": 0, "links": 16}
    if fault < len(wrong):
        name = list(wrong)[fault]
        if name == "kind":
            kind = "tree"
        else:
            options[name] = wrong[name]
        faults.append(name)
        kind = "exact" if name == "links" else kind
    index = outcome(lambda: NeighborIndex.build(x, kind, **options), faults)
    if index is None:
        return
    assert len(index) == n and index.recall == 1.0
    m = draw(st.integers(0, 4))
    queries, asked, faulty = _rows(draw, m, d)
    k, wrong_k = whole(draw, 1, n)
    found = outcome(lambda: index.search(queries, k), ["queries"] * faulty + ["k"] * wrong_k)
    if found is not None:
        _nearest(found, reference.cosine(asked, numbers), int(k))
    if n > 1:
        k = draw(st.integers(1, n - 1))
        _nearest(index.knn(k), reference.cosine(numbers).fill_diagonal_(-torch.inf), k)
        again = cosine_topk(numbers, k=k)
        assert (index.knn(k).values.double() - again.values.double()).abs().max() <= 4e-6
    more, _, faulty = _rows(draw, m, d)
    if outcome(lambda: index.add(more) or True, ["embeddings"] * faulty):
        assert len(index) == n + m
        index.search(torch.ones(1, d), n + m)


def _rows(draw: Draw, n: int, d: int) -> tuple[object, Tensor, bool]:
    """As a tensor, or as a numpy array of any stride; and the numbers."""
    drawn = matrix(draw, n, d, contents=[c for c in CONTENTS if c not in ("denormal", "tiny")])
    if isinstance(drawn.x, np.ndarray) and d:  # no fault here
        return drawn.x, torch.from_numpy(drawn.x), False
    if drawn.faulty or drawn.x.dtype == torch.bfloat16 or draw(st_bool):
        return drawn.x, drawn.x, drawn.faulty
    array = drawn.x.numpy()
    views = [array, array[::-1], array[:, ::-1], np.asfortranarray(array), np.repeat(array, 2, 0)[::2]]
    array = one_of(draw, views)
    return array, torch.from_numpy(array.copy()), False


def _nearest(found: tuple[Tensor, Tensor], c: Tensor, k: int) -> None:
    values, indices = found
    assert values.shape == indices.shape == (len(c), k)
    if not len(c):
        return
    assert bool(((indices >= 0) & (indices < c.shape[1])).all())
    assert all(len(set(row)) == k for row in indices.tolist()), "a neighbour twice"
    chosen, others = c.gather(1, indices), c.scatter(1, indices, -torch.inf)
    assert (values.double() - chosen).abs().max() <= 4e-6
    assert bool((chosen.amin(dim=1) >= others.amax(dim=1) - 4e-6).all()), "a nearer row was left out"
