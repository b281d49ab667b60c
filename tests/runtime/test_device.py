"""runtime/device.py: device, precision, memory layout and worker count."""

import importlib

import pytest
import torch

from runtime import device as runtime_device
from runtime.device import memory_format, select_device, select_precision, worker_count

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_fp32_switches_tf32_off(monkeypatch):
    """cuDNN's TF32 is on by default. CUDA's answers are replaced, since a machine without it runs these tests."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert select_precision("fp32", CUDA) == torch.float32 and not torch.backends.cudnn.allow_tf32
    assert select_precision("auto", CUDA) == torch.bfloat16 and torch.backends.cudnn.allow_tf32


def test_the_memory_layout_is_the_faster_one():
    """On CPUs channels_last in both precisions; on CUDA where the tensor cores want it."""
    last, plain = torch.channels_last, torch.contiguous_format
    assert memory_format(CPU, torch.float32) == memory_format(CPU, torch.bfloat16) == last
    assert memory_format(CUDA, torch.bfloat16) == last and memory_format(CUDA, torch.float32) == plain


def test_few_batches_are_loaded_without_worker_processes_on_a_cpu(monkeypatch):
    monkeypatch.setattr(runtime_device, "core_count", lambda: 16)  # whatever the machine has
    assert worker_count("auto", CPU, batches=4) == 0 and worker_count("auto", CPU, batches=400) == 8
    assert worker_count("auto", CUDA, batches=4) == 8 and worker_count(3, CUDA, batches=4) == 3


def test_the_precision_follows_the_setting_and_the_cpu(monkeypatch):
    cpu = torch.device("cpu")
    assert select_precision("fp32", cpu) == torch.float32
    assert select_precision("bf16", cpu) == torch.bfloat16
    for capabilities, expected in (({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.bfloat16),
                                   ({"avx512_f": True}, torch.float32)):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert select_precision("auto", cpu) == expected
    assert select_device("cpu") == cpu


def test_nothing_reports_over_the_network_that_it_is_used():
    """OpenVINO's converter would, and NNCF but for where pytest runs. test_deploy.py has Ray."""
    telemetry = pytest.importorskip("openvino.tools.ovc.telemetry_utils")
    assert telemetry.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")
