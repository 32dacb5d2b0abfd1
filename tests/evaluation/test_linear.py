"""The linear probe against `torch.nn.Linear` trained alone, and its parts against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import logistic as logistic_module
from ssl_toolkit.evaluation.heads import (
    FeatureNorm,
    Standardizer,
    batches,
    edge_note,
    images_in,
    summed_loss,
    threads_for,
)
from ssl_toolkit.evaluation.linear import Linear, LinearConfig, train_linear
from ssl_toolkit.evaluation.logistic import LogisticLoss, logistic_path
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled
from ssl_toolkit.registry import typed
from tests.evaluation.fakes import CPU, bank, eval_data, one_hot_data


def problem(count: int = 70, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return torch.randn(count, 6, generator=generator) + labels[:, None] / 2, labels


def test_heads_equal_linear_layers_trained_alone() -> None:
    features, labels = problem()
    lrs = [0.01, 0.3, 1.0]
    options = LinearConfig(lrs=lrs, epochs=7, batch_size=16, weight_decay=0.01, seed=3)
    norm = Standardizer.fit(features)
    heads = train_linear(features, labels, 4, options, norm, CPU)
    steps = 7 * 5
    for i, lr in enumerate(lrs):
        layer = nn.Linear(6, 4)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for rows in batches(70, 16, steps, seed=3):
            optimizer.zero_grad()
            F.cross_entropy(layer(norm(features[rows])), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        assert torch.allclose(heads.weights[i], layer.weight, atol=1e-5, rtol=1e-5)
        assert torch.allclose(heads.biases[i], layer.bias, atol=1e-5, rtol=1e-5)


def test_a_head_does_not_depend_on_its_neighbours_even_if_they_diverge() -> None:
    features, labels = problem()
    norm = Standardizer.fit(features)
    alone = train_linear(features, labels, 4, LinearConfig(lrs=[0.1], epochs=20), norm, CPU)
    beside = LinearConfig(lrs=[1e-3, 0.1, 1e38, 3.0], epochs=20)
    together = train_linear(features, labels, 4, beside, norm, CPU)
    assert torch.allclose(alone.weights[0], together.weights[1], atol=1e-6, rtol=1e-6)
    assert torch.allclose(alone.biases[0], together.biases[1], atol=1e-6, rtol=1e-6)
    assert together.diverged() == [False, False, True, False]


def test_diverged_heads_are_marked_and_never_chosen() -> None:
    data = one_hot_data(60, 3, shuffled=False)
    outcome = Linear(LinearConfig(lrs=[1e38, 0.1], epochs=20)).run(data)
    assert outcome.grid[0] == {"lr": 1e38, "val_top1": None, "test_top1": None, "diverged": True}
    assert outcome.selected == {"lr": 0.1}
    with pytest.raises(UserError, match=r"every learning rate diverged.*linear\.lrs"):
        Linear(LinearConfig(lrs=[1e38], epochs=20)).run(data)


def test_planted_answers() -> None:
    right = Linear(LinearConfig(epochs=30)).run(one_hot_data(400, 8, shuffled=False))
    assert right.metrics == {"top1": 100.0, "top5": 100.0}
    chance = Linear(LinearConfig(epochs=30)).run(one_hot_data(400, 8, shuffled=True))
    assert chance.metrics["top1"] < 25


def test_lr_is_chosen_on_validation_and_reported_on_test() -> None:
    splits = [bank(*problem(80, seed)) for seed in range(3)]
    splits[1] = bank(splits[1].pooled, splits[1].labels.roll(1))  # validation labels are noise
    data = eval_data(*splits, classes=4)
    outcome = Linear(LinearConfig(lrs=[1e-4, 1e-3, 1e-2, 1e-1, 1.0], epochs=10)).run(data)
    row = max(outcome.grid, key=lambda r: r["val_top1"])
    assert outcome.selected == {"lr": row["lr"]}
    assert outcome.metrics == {"top1": row["test_top1"]}


def test_summed_loss_is_a_sum_of_means_without_the_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 2, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (2, 7), generator=generator)
    target[0, :3] = 255
    expected = sum(
        F.cross_entropy(logits[:, head].flatten(1).T, target.flatten(), ignore_index=255) for head in range(3)
    )
    assert float(summed_loss(logits, target, 255)) == pytest.approx(float(expected), rel=1e-12)
    assert float(summed_loss(logits, torch.full_like(target, 255), 255)) == 0


def test_standardizer_is_batchnorm_without_affine() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 4, generator=generator) * torch.tensor([1.0, 1e-3, 50.0, 2.0]) + 7
    features[:, 3] = 0.1  # never changes
    got = Standardizer.fit(features)(features)
    reference = features.double().numpy()
    expected = (reference - reference.mean(0)) / reference.std(0).clip(1e-12)
    assert got[:, :3].numpy() == pytest.approx(expected[:, :3], abs=2e-3)
    assert (got[:, 3] == 0).all()
    assert torch.equal(Standardizer.fit(features, enabled=False)(features), features)


def test_standardizer_of_maps_takes_all_cells() -> None:
    maps = torch.randn(50, 3, 4, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    norm = nn.BatchNorm2d(3, affine=False, eps=1e-12)
    expected = norm(maps.float())
    assert torch.allclose(Standardizer.fit(maps)(maps), expected, atol=1e-4)


def test_batches_are_permutations_and_are_counted_right() -> None:
    seen = list(batches(10, 4, 7, seed=0))
    assert [len(rows) for rows in seen] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(seen[:3]).tolist()) == sorted(torch.cat(seen[3:6]).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:6]))
    for length, size, steps in [(10, 4, 7), (10, 4, 6), (3, 8, 5), (8, 8, 1)]:
        assert images_in(length, size, steps) == sum(len(rows) for rows in batches(length, size, steps, 0))


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(10, CPU):
            assert torch.get_num_threads() == 1
        with threads_for(2**28, CPU):
            assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), threads_for(10, CPU):
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_end_of_the_sweep_is_noted() -> None:
    assert "widen linear.lrs" in edge_note([0.1, 1.0], 1.0, "linear.lrs")[0]
    assert edge_note([0.1, 1.0, 10.0], 1.0, "linear.lrs") == []
    assert edge_note([0.1], 0.1, "linear.lrs") == []


def test_one_class_and_fewer_images_than_a_batch() -> None:
    features = torch.randn(5, 3)
    split = bank(features, torch.zeros(5, dtype=torch.long))
    outcome = Linear(LinearConfig(epochs=2)).run(eval_data(split, split, split, 1))
    assert outcome.metrics == {"top1": 100.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lrs": []}, "lrs must"),
        ({"lrs": [0.1, 0.1]}, "lrs must"),
        ({"lrs": [-1.0]}, "lrs must"),
        ({"lrs": [math.inf]}, "lrs must"),
        ({"epochs": 0}, "epochs and batch_size"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"learning_rates": [1.0]}, "did you mean|valid"),
        ({"solver": "lbfg"}, "unknown solver 'lbfg': did you mean 'lbfgs'"),
        ({"cs": []}, "cs must"),
        ({"max_iter": 0}, "max_iter"),
        ({"labels": {"shot": 1}}, "did you mean 'shots'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(LinearConfig, options, "linear")


def test_head_norm_false_leaves_features_as_they_are() -> None:
    features, labels = problem()
    scaled = bank(features * 1e-3, labels)
    data = eval_data(scaled, scaled, scaled, classes=4)
    accuracy = {
        norm: Linear(LinearConfig(lrs=[0.01], epochs=10, head_norm=norm)).run(data).metrics["top1"]
        for norm in (True, False)
    }
    assert accuracy[True] > accuracy[False]
    assert np.isfinite(list(accuracy.values())).all()


def logistic(features: torch.Tensor, labels: torch.Tensor, c: float) -> LogisticRegression:
    """scikit-learn's, to its optimum in float64."""
    return LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(features.double().numpy(), labels.numpy())


def test_lbfgs_is_scikit_learns_logistic_regression() -> None:
    features, labels = problem(300)
    cs = [1.0, 1e-4, 100.0, 0.01]  # in no order
    fits = logistic_path(features, labels, 4, cs, max_iter=1000, tolerance=1e-5, device=CPU)
    for c, fit in zip(cs, fits):
        theirs = logistic(features, labels, c)
        assert fit.converged
        assert fit.weight.numpy() == pytest.approx(theirs.coef_, abs=1e-3)
        bias = fit.bias - fit.bias.mean()  # neither is penalised: only differences count
        assert bias.numpy() == pytest.approx(theirs.intercept_ - theirs.intercept_.mean(), abs=1e-3)


def test_the_gradient_of_lbfgs_is_that_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(50)
    monkeypatch.setattr(logistic_module, "LOGITS", 4 * 7)  # chunks of 7 images
    flat = torch.randn(4 * 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gradient = LogisticLoss(features, labels, 4, CPU)(flat.numpy(), 0.3)
    both = flat.view(4, 7).clone().requires_grad_()
    logits = features.double() @ both[:, :-1].T + both[:, -1]
    expected = F.cross_entropy(logits, labels) + both[:, :-1].square().sum() / (2 * 0.3 * 50)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert gradient == pytest.approx(both.grad.flatten().numpy(), rel=1e-4, abs=1e-6)


def test_lbfgs_chooses_the_penalty_on_validation() -> None:
    splits = [bank(*problem(80, seed)) for seed in range(3)]
    options = LinearConfig(solver="lbfgs", cs=[1e-5, 0.1, 100.0], head_norm=True)
    protocol = Linear(options)
    outcome = protocol.run(eval_data(*splits, classes=4))
    norm = Standardizer.fit(splits[0].pooled)
    for row, c in zip(outcome.grid, options.cs):
        theirs = logistic(norm(splits[0].pooled), splits[0].labels, c)
        for split, key in ((1, "val_top1"), (2, "test_top1")):
            features, labels = norm(splits[split].pooled).double().numpy(), splits[split].labels.numpy()
            assert row[key] == pytest.approx(100 * theirs.score(features, labels), abs=1.3)  # one image
    best = max(outcome.grid, key=lambda row: row["val_top1"])
    assert outcome.selected == {"c": best["c"]}
    assert outcome.metrics == {"top1": best["test_top1"]}
    assert protocol.variant == "lbfgs"


def test_lbfgs_finds_planted_answers_and_says_what_did_not_converge() -> None:
    options = LinearConfig(solver="lbfgs", cs=[1e-3, 1.0, 1e3])
    assert Linear(options).run(one_hot_data(400, 8, shuffled=False)).metrics == {"top1": 100.0, "top5": 100.0}
    assert Linear(options).run(one_hot_data(400, 8, shuffled=True)).metrics["top1"] < 25
    short = Linear(LinearConfig(solver="lbfgs", cs=[1.0, 1e5], max_iter=1)).run(one_hot_data(60, 3, shuffled=True))
    assert "c 1, 100000: not converged after 1 iterations" in short.notes


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_a_part_of_the_labels_is_all_that_is_trained_on(solver: str) -> None:
    data = one_hot_data(60, 3, shuffled=False)
    options = LinearConfig(solver=solver, epochs=20, head_norm=False, labels=LabelsConfig(shots=2))
    protocol = Linear(options)
    rows = labelled(options.labels, data.datasets["train"]).rows
    others = np.setdiff1d(np.arange(60), rows)
    data.train.pooled[others] = torch.nan  # never looked at
    outcome = protocol.run(data)
    assert outcome.metrics == {"top1": 100.0}
    assert outcome.details["labels"]["images"] == 6
    assert outcome.details["labels"]["of"] == 60
    assert protocol.variant == ("2shot" if solver == "sgd" else "lbfgs-2shot")


def test_a_list_that_cannot_be_used_stops_before_any_work() -> None:
    data = one_hot_data(60, 3, shuffled=False)
    with pytest.raises(UserError, match="the images of arrays have no names"):
        Linear(LinearConfig(labels=LabelsConfig(list="x.txt"))).check(data.source, data.datasets)


def test_feature_norm_is_batchnorm_without_affine() -> None:
    ours, theirs = FeatureNorm(5), nn.BatchNorm1d(5, affine=False)
    for step in range(4):
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(step)) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.var, theirs.running_var)


def test_a_part_of_a_batch_has_its_part_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(5, 3, 8, generator=generator), torch.arange(8) % 5
    parts = [summed_loss(logits[..., part], target[part], scored=8) for part in (slice(0, 3), slice(3, 8))]
    assert float(sum(parts)) == pytest.approx(float(summed_loss(logits, target)), rel=1e-6)
