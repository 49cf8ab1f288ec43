"""The check-up: what it finds on machines that are not here, and versions against those that were tested."""

import re
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from newllm_lib import doctor as module
from newllm_lib.data.sources import HubProblem
from newllm_lib.doctor import PACKAGES, PYTHON, doctor, of_space, of_the_device, of_version
from newllm_lib.errors import CODES
from newllm_lib.training.device import Device

ROOT = Path(__file__).parents[1]
BOUNDS = {"Python": PYTHON, **{package: entry[:2] for package, entry in PACKAGES.items()}}


def found(findings, subject):
    (finding,) = [finding for finding in findings if finding.subject == subject]
    return finding


@pytest.mark.parametrize(
    ("device", "precision", "why"),
    [
        (Device("cuda", "Tesla T4", 14.7, (7, 5), 2), "fp16", "has no bf16"),
        (Device("cuda", "NVIDIA L4", 22.5, (8, 9), 8), "bf16", "8.9"),
        (Device("cuda", "NVIDIA A100-SXM4-40GB", 39.6, (8, 0), 8), "bf16", "8.0"),
    ],
)
def test_a_gpu_is_named_with_its_memory_and_what_it_computes_in(device, precision, why):
    findings = of_the_device(device)
    assert found(findings, "GPU").value == device.name
    assert found(findings, "GPU memory").value == f"{device.memory_gb:.1f} GB"
    assert found(findings, "Compute capability").value == "{}.{}".format(*device.capability)
    assert found(findings, "Precision").value == precision and why in found(findings, "Precision").advice


def test_without_a_gpu_it_says_where_there_is_one(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", dict, raising=False)
    findings = of_the_device(Device("cpu", "CPU", None, None, 2))
    gpu = found(findings, "GPU")
    assert gpu.status == "note" and "Change runtime type" in gpu.advice and gpu.code == "NL-101"
    assert found(findings, "Precision").value == "fp32"
    assert not [f for f in findings if f.subject in ("GPU memory", "Compute capability")]


def test_little_memory_and_little_disk_are_remarks(monkeypatch, tmp_path):
    gb = 2**30
    for free, status, codes in ((1 * gb, "note", ["NL-103", "NL-104"]), (9 * gb, "ok", ["", ""])):
        memory, disk = SimpleNamespace(available=free, total=12 * gb), SimpleNamespace(free=free)
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda memory=memory: memory)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path, disk=disk: disk)
        findings = of_space(tmp_path / "not" / "there" / "yet")
        assert [finding.status for finding in findings] == [status, status]
        assert [finding.code for finding in findings] == codes


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("torch", "2.5.1", "fail"),
        ("torch", "2.11.0+cu128", "ok"),
        ("torch", PACKAGES["torch"][1] + "+cpu", "ok"),
        ("torch", "99.0", "note"),
        ("transformers", "4.57.0", "fail"),
        ("ipywidgets", "7.7.1", "ok"),
        ("matplotlib", "3.0", "ok"),
        ("Python", "3.9.2", "fail"),
        ("Python", "3.13.15", "ok"),
        ("Python", "3.14.0", "note"),
    ],
)
def test_versions_are_held_against_the_tested_ones(name, version, status):
    finding = of_version(name, version, *BOUNDS[name])
    assert (finding.value, finding.status) == (version, status)
    assert finding.code == ("" if status == "ok" else "NL-102") and finding.advice


def test_the_bounds_are_those_of_setup_and_of_the_constraints():
    asked = {r.name: str(r.specifier).removeprefix(">=") for r in map(Requirement, requires("newllm"))}
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for package, (least, newest, *_) in PACKAGES.items():
        assert least == asked[package] and newest == pinned[package], package
    setup = (ROOT / "setup.py").read_text()
    assert PYTHON[0] == re.search(r'python_requires=">=(.+?)"', setup)[1]
    for image in (ROOT.parent / "shared" / "colab").glob("freeze-*-gpu.txt"):
        pins = dict(re.findall(r"^([\w.-]+)==(\S+)", image.read_text(), re.MULTILINE))
        for package in PACKAGES.keys() & pins.keys():
            assert of_version(package, pins[package], *BOUNDS[package]).status == "ok", (
                f"{image.name}: {package} {pins[package]}"
            )
            assert Version(pins[package]).public


def test_every_code_it_gives_is_explained(monkeypatch):
    monkeypatch.setattr(module, "hub_problem", lambda source: HubProblem("other", "it answered 503"))
    codes = {finding.code for finding in doctor(adapters=True)} - {""}
    assert "NL-301" in codes and codes <= set(CODES)


@pytest.mark.parametrize(("kind", "code"), [("unreachable", "NL-301"), ("gated", "NL-302")])
def test_a_hub_that_is_not_reached_says_why(monkeypatch, kind, code):
    monkeypatch.setattr(module, "hub_problem", lambda source: HubProblem(kind, "some words"))
    hub = found(module.of_data(), "Hub")
    assert "some words" in hub.value and hub.code == code and hub.status in ("note", "fail")


@pytest.mark.parametrize(
    ("missing", "stage", "statuses"),
    [("trl", "6", ("note", "note", "fail")), ("peft", "5 and stage 6", ("note", "fail", "fail"))],
)
def test_what_only_some_stages_need_fails_no_other(monkeypatch, missing, stage, statuses):
    def version(package):
        if package == missing:
            raise module.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(module, "version", version)
    monkeypatch.setattr(module, "hub_problem", lambda source: None)
    for fields, status in zip(({}, {"adapters": True}, {"preferences": True}), statuses, strict=True):
        finding = found(doctor(**fields), missing)
        assert finding.status == status and f"stage {stage}: pip install" in finding.advice
