"""A kill or an error at places that change files: what is left is whole, and the next run goes on to the same end.

A few faults of training; those of all modes, at every place, with `make faults`.
"""

import math
import os
import random
from functools import cache

import pytest
from conftest import SETTINGS, make_dataset
from faults.harness import MODES, Fault, Trial, faults_of, make_workplace
from faults.places import IS_WHOLE, KILL

WORKERS = "train, 2 workers"  # the same places as train
SHORT = ("train", "watch")  # they reach their places in one order; the others write in threads
SOME = 3  # faults of each of these, where not all are tried
PARTS = 6 if IS_WHOLE else 1  # of the faults of a mode, which two processes share
LEAST_REACHED = 0.9  # threads reach places in another order each time
KILLS = 100 if IS_WHOLE else 2  # at random moments, over all modes
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory):
    base = tmp_path_factory.mktemp("faults")
    make_workplace(base, make_dataset, SETTINGS)
    return cache(lambda name: Trial(base, name))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", [name for name in MODES if name != WORKERS] if IS_WHOLE else SHORT)
def test_nothing_is_lost_and_the_next_run_goes_on(trial_of, name, part):
    trial = trial_of(name)
    faults = list(faults_of(trial.counts, trial.mode))
    assert len(faults) >= 20
    problems = {}
    tried = faults[part::PARTS] if IS_WHOLE else random.Random(name).sample(faults, SOME)
    before = trial.reached
    for fault in tried:
        if found := trial.problems(fault):
            problems[fault] = found
    reached = trial.reached - before
    faults_tried = f"{len(tried)} of {len(faults)} faults, of which {reached} happened"
    print(f"{name}: {len(trial.counts)} places, {faults_tried}, {len(problems)} with problems")
    assert reached >= LEAST_REACHED * len(tried)
    assert not problems, "\n".join(f"{one}: {found}" for one, found in problems.items())


@pytest.mark.parametrize("name", MODES if IS_WHOLE else [WORKERS])
def test_nothing_is_lost_by_a_kill_at_any_moment(trial_of, name):
    trial, moments = trial_of(name), random.Random(name)
    share = math.ceil(KILLS / (len(MODES) if IS_WHOLE else 1))
    kills = [moments.uniform(0, trial.seconds) for _ in range(share)]
    problems = {seconds: found for seconds in kills if (found := trial.problems_after_kill(seconds))}
    print(f"{name}: {len(kills)} kills within {trial.seconds:.1f} s, {len(problems)} with problems")
    assert not problems, "\n".join(f"{one}: {found}" for one, found in problems.items())


def test_a_training_killed_at_its_first_checkpoint_resumes(trial_of):
    """After that of epoch 1 there was no last.pt yet, and the next run refused to begin."""
    trial = trial_of("train")
    places = [place for place in trial.counts if place.startswith("unlink") and "write_checkpoint" in place]
    faults = [Fault(place, count, KILL) for place in places for count in (1, 2) if count <= trial.counts[place]]
    assert len(faults) >= 3
    assert {fault: found for fault in faults if (found := trial.problems(fault))} == {}
