"""inference/networks.py: when networks are compiled, and what follows where torch.compile fails.

torch.compile is replaced in most of these tests: it takes minutes, needs a compiler, and here only its calls count.
"""

import pytest
import torch
from messages import lines_with, raises_user_error

from inference import networks
from inference.networks import optimized
from model import DRAEM


@pytest.fixture
def counted(monkeypatch):
    """In place of torch.compile: counts what is compiled and how often that runs."""
    calls = {"compiled": 0, "runs": 0}

    def compile_(model, **options):
        calls["compiled"] += 1

        def network(x):
            calls["runs"] += 1
            return model(x)

        return network

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def identity(x):
    return x, x


@pytest.mark.parametrize(
    ("setting", "device", "steps", "expected"),
    [
        ("auto", "cpu", 10**6, 0),
        ("auto", "cuda", 10**6, 1),
        ("auto", "cuda", 1000, 0),
        ("on", "cpu", 1, 1),
        ("off", "cuda", 10**6, 0),
        ("off", "cpu", 10**6, 0),
    ],
)
def test_training_is_compiled_where_it_pays_or_is_asked_for(counted, setting, device, steps, expected):
    network = networks.for_training(identity, setting, torch.device(device), steps)
    assert network(torch.zeros(2, 3))[0].shape == (2, 3)
    assert counted == {"compiled": expected, "runs": expected}


@pytest.mark.parametrize(("setting", "images", "expected"), [("auto", 10**9, 1), ("auto", 100, 0), ("off", 10**9, 0)])
def test_inference_is_compiled_where_minutes_of_work_remain(counted, setting, images, expected):
    network = networks.for_inference(identity, setting, lambda: torch.zeros(2, 3), images)
    for _ in range(5):
        network(torch.zeros(2, 3))
    assert counted == {"compiled": expected, "runs": 5 * expected}


def test_a_last_batch_of_another_size_runs_uncompiled(counted):
    network = networks.for_inference(identity, "on", lambda: torch.zeros(4, 3), 3)
    assert [len(network(torch.zeros(n, 3))[0]) for n in (4, 4, 2)] == [4, 4, 2]
    assert counted == {"compiled": 1, "runs": 2}


def test_where_the_compiler_fails_networks_run_uncompiled_or_it_is_a_user_error(monkeypatch, capsys):
    def broken(*arguments, **options):
        def network(x):
            raise torch._dynamo.exc.BackendCompilerFailed(None, RuntimeError("no compiler"), [])

        return network

    monkeypatch.setattr(torch, "compile", broken)
    network = networks.Compiled(identity, "auto")
    assert [len(network(torch.zeros(2, 3))) for _ in range(2)] == [2, 2]
    assert len(lines_with(capsys.readouterr().out, "torch.compile", "no compiler")) == 1
    with raises_user_error("train.compile = on", "no compiler"):
        networks.Compiled(identity, "on")(torch.zeros(2, 3))


def test_an_error_of_a_later_run_is_not_the_compilers(monkeypatch):
    def fragile(model, **options):
        def network(x):
            if x.any():
                raise RuntimeError("device-side assert")
            return model(x)

        return network

    monkeypatch.setattr(torch, "compile", fragile)
    network = networks.Compiled(identity, "auto")
    network(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="device-side assert"):
        network(torch.ones(2, 3))


@pytest.fixture
def for_this_processor():
    """What the processor says of itself is believed: programs that try it out take six seconds to build."""
    import torch._inductor.config

    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        yield


@pytest.mark.usefixtures("for_this_processor")
def test_compiled_networks_give_the_same_output():
    """Of one layer of each kind: compiling all of them takes 45 seconds."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():  # as detection prepares its networks: weights that cannot be trained any more
        whole = optimized(DRAEM(2, 2).eval(), torch.device("cpu"), torch.float32).reconstructive
        encoder, decoder = whole.encoder, whole.decoder
        network = torch.nn.Sequential(encoder.block1, encoder.pool, decoder.up4, decoder.db4, decoder.fin_out)
        expected = network(x)
        found = networks.for_inference(network, "on", lambda: x, 1)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return x, torch.relu(self.convolution(x))


@pytest.mark.usefixtures("for_this_processor")
def test_two_compiled_models_keep_their_own_weights():
    x = torch.rand(2, 3, 8, 8)
    for _ in range(2):
        with torch.inference_mode():
            model = Tiny().eval()
            expected = model(x)[1]
            found = networks.for_inference(model, "on", lambda: x, 1)(x)[1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
