"""The harness with contenders that count and a clock that only they move. Nothing here depends on real time."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from ssl_toolkit.bench.base import Contender
from ssl_toolkit.bench.memory import extra_peak
from ssl_toolkit.bench.timing import MAX_REPEATS, Samples, Timer, alternate, probe, ratio

CPU = torch.device("cpu")


class World:
    """A clock, and contenders whose calls and preparations move it by what they are given."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.timer = Timer(CPU, lambda: self.now)

    def contender(self, name: str, *seconds: float, prepare: float = 5.0) -> Contender:
        calls = iter(range(10**6))

        def ready() -> str:
            self.now += prepare
            return f"{name}'s input"

        def call(given: str) -> None:
            assert given == f"{name}'s input"
            assert not gc.isenabled()
            self.log.append(name)
            self.now += seconds[min(next(calls), len(seconds) - 1)]

        return Contender(name, call, ready)


def run(world: World, contenders: list[Contender], rounds: int, budget: float = 1e9) -> dict[str, Samples]:
    samples = {c.name: Samples() for c in contenders}
    alternate(contenders, samples, rounds=rounds, budget=budget, timer=world.timer)
    return samples


def test_contenders_take_turns_and_the_order_rotates() -> None:
    world = World()
    run(world, [world.contender(name, 1.0) for name in "abc"], rounds=4)
    assert "".join(world.log) == "abcbcacababc"


def test_only_calls_are_timed_and_not_their_preparation() -> None:
    world = World()
    samples = run(world, [world.contender("a", 1.0, 3.0, 2.0)], rounds=3)
    assert samples["a"].seconds == [1.0, 3.0, 2.0]
    assert samples["a"].rounds == [0, 1, 2]
    assert samples["a"].median == 2.0


def test_a_slow_contender_sits_out_once_its_budget_is_spent() -> None:
    world = World()
    samples = run(world, [world.contender("fast", 1.0), world.contender("slow", 40.0)], rounds=6, budget=60.0)
    assert samples["slow"].rounds == [0, 1]
    assert samples["fast"].rounds == [0, 1, 2, 3, 4, 5]


def test_every_round_advances_the_bar_even_of_those_who_sit_out() -> None:
    world, moves = World(), []
    contenders = [world.contender("fast", 1.0), world.contender("slow", 40.0)]
    samples = {c.name: Samples() for c in contenders}
    alternate(contenders, samples, rounds=6, budget=1.0, timer=world.timer, advance=lambda: moves.append(1))
    assert len(moves) == 12
    assert samples["slow"].rounds == [0]


def test_ratios_are_of_medians_over_shared_rounds() -> None:
    reference = Samples(seconds=[1.0, 2.0, 4.0, 100.0], rounds=[0, 1, 2, 3])
    other = Samples(seconds=[3.0, 4.0, 20.0], rounds=[0, 1, 2])
    found = ratio(other, reference)
    assert found.median == 2.0  # 4 / 2; the fourth round is the reference's alone
    assert (found.low, found.high) == (2.0, 5.0)  # 3/1, 4/2, 20/4


def test_the_probe_prepares_outside_and_sets_the_repeats() -> None:
    world = World()
    assert probe(world.contender("slow", 3.0), world.timer).repeats == 1
    assert probe(world.contender("fast", 0.02), world.timer).repeats == 5
    assert probe(world.contender("instant", 0.0), world.timer).repeats == MAX_REPEATS


def test_a_sample_of_a_fast_contender_is_the_median_of_its_calls() -> None:
    world = World()
    contender = world.contender("fast", 0.01, 0.09, 0.02, prepare=0.0)
    samples = {"fast": Samples(repeats=3)}
    alternate([contender], samples, rounds=1, budget=10.0, timer=world.timer)
    assert samples["fast"].seconds == [pytest.approx(0.02)]


def test_the_collector_is_back_on_even_after_an_error() -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Timer(CPU).call(Contender("bad", fail))
    assert gc.isenabled()


def megabytes(call: Callable[[], object]) -> float | None:
    size = extra_peak(CPU, call)[1]
    return None if size is None else size / 1e6


def test_the_probe_sees_what_a_call_needed_though_it_gave_it_back() -> None:
    def call() -> float:
        return float(torch.ones(50_000_000).sum())  # 200 MB that are gone afterwards

    found = megabytes(call)
    if found is None:
        pytest.skip("the peak of resident memory cannot be reset here")
    assert 195 < found < 215
    again = megabytes(call)
    assert again is not None
    assert 195 < again < 215  # the allocator keeps nothing back that would hide the second


def test_what_was_there_before_does_not_count() -> None:
    before = torch.ones(50_000_000)
    found = megabytes(lambda: before.add_(1))
    if found is None:
        pytest.skip("the peak of resident memory cannot be reset here")
    assert found < 10


def test_devices_without_a_probe_say_so() -> None:
    assert extra_peak(torch.device("meta"), lambda: 7) == (7, None)
