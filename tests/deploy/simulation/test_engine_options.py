"""What an engine is told of Ray, processors and GPUs, and what of it is refused before anything starts."""

import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nufed.common.data import on_demand
from nufed.common.errors import ConfigError, RunError
from nufed.deploy.commands.cli import main
from nufed.deploy.simulation import ray_cluster, shipped_code
from nufed.deploy.simulation.engine_options import EngineOptions, ray_resources, split_engine_options
from nufed.deploy.simulation.process_pool import worker_devices
from nufed.deploy.simulation.ray_actors import Packed
from nufed.deploy.simulation.ray_cluster import RayNode
from nufed.deploy.simulation.ray_pool import ActorPool, _room


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus_per_client": 0}, "greater than 0"),
        ({"cpus_per_client": float("nan")}, "greater than 0"),
        ({"gpus_per_client": -0.5}, "from above 0 to 1"),
        ({"gpus_per_client": 2}, "from above 0 to 1"),
        ({"ray_resources": {"CPU": 1}}, "other than CPU"),
        ({"ray_resources": {"accelerator": True}}, "amounts above 0"),
        ({"ray_resources": ["accelerator"]}, "names and amounts"),
        ({"ray_address": " "}, "ray://HOST:PORT"),
    ],
)
def test_numbers_without_a_meaning_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ("local", {"ray_address": "auto"}, "--ray-address is for --engine ray, but the engine is local"),
        ("processes", {"ray_resources": {"slot": 1}}, "--ray-resources is for --engine ray"),
        ("cohort", {"gpus_per_client": 0.25}, "--gpus-per-client is for --engine ray or processes"),
        ("auto", {"cpus_per_client": 2}, "--cpus-per-client is for --engine ray or processes"),
    ],
)
def test_an_engine_is_told_nothing_that_it_would_not_heed(engine, options, words):
    with pytest.raises(ConfigError, match=words):
        EngineOptions(**options).check(engine)


@pytest.mark.parametrize(("device", "is_refused"), [("cpu", True), ("cuda:1", True), ("cuda", False), (None, False)])
def test_a_named_device_contradicts_a_share_of_each(monkeypatch, device, is_refused):
    """`cuda` stands for whichever GPU each process is given."""
    monkeypatch.delenv("NUFED_DEVICE", raising=False)
    if device:
        monkeypatch.setenv("NUFED_DEVICE", device)
    options = EngineOptions(gpus_per_client=0.5)

    if is_refused:
        with pytest.raises(ConfigError, match=f"contradicts the device '{device}'"):
            options.check("processes")
    else:
        options.check("ray")
    assert options.variables() == {"NUFED_DEVICE": "cuda"}
    assert EngineOptions().variables() == {}


@pytest.mark.parametrize(
    ("is_own", "per_client", "words"),
    [
        (True, {"CPU": 4096}, "Expected this machine with at least 4096 CPU, .* there is 10.0.0.7: 2 CPU"),
        (
            False,
            {"CPU": 1, "GPU": 0.5},
            "a node of the Ray cluster with at least 1 CPU, 0.5 GPU, .* 2 CPU, 0 GPU",
        ),
        (False, {"CPU": 1, "slot": 2}, "at least 1 CPU, 2 slot, .* 2 CPU, 1 slot"),
    ],
)
def test_what_no_node_has_is_refused_with_what_there_is(is_own, per_client, words):
    """Nothing is waited for that cannot come."""
    node = RayNode("a", "10.0.0.7", (("CPU", 2.0), ("slot", 1.0)))
    cluster = SimpleNamespace(is_own=is_own, nodes=lambda: [node])

    with pytest.raises(RunError, match=words):
        ActorPool(cluster, None, per_client, 3, pytest.fail)


def test_processes_are_given_gpus_in_turn(monkeypatch):
    """As many on each as its fraction allows, and no more than the processors can run."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(12))

    assert worker_devices(EngineOptions(gpus_per_client=0.25)) == [f"cuda:{i % 2}" for i in range(8)]
    assert worker_devices(EngineOptions(gpus_per_client=0.3)) == ["cuda:0", "cuda:1"] * 3
    assert worker_devices(EngineOptions(gpus_per_client=0.25, cpus_per_client=4)) == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_devices(EngineOptions(cpus_per_client=5)) == [None, None]
    assert worker_devices(EngineOptions(), 3) == [None, None, None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus-per-client", "0.5"], "needs a GPU that torch can use, but this machine has none"),
        (["--cpus-per-client", "5000"], "--cpus-per-client=5000 is more than this machine's"),
        (["--gpus-per-client", "nan"], "--gpus-per-client=nan"),
    ],
)
def test_what_this_machine_lacks_is_said_at_once(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    few = ["--dataset", "quadratic", "--model", "linear", "--clients", "3", "--new-clients", "0"]

    code = main(["simulate", *few, "--engine", "processes", "--out", str(tmp_path), *options])

    assert code == 2
    assert words in capsys.readouterr().err


def test_resources_are_read_as_json():
    assert ray_resources('{"accelerator": 1, "slot": 0.5}') == {"accelerator": 1, "slot": 0.5}
    assert ray_resources(None) == {}
    with pytest.raises(ConfigError, match="got 'accelerator=1'"):
        ray_resources("accelerator=1")


def test_python_takes_what_an_engine_is_told_by_name():
    others, told = split_engine_options({"num_rounds": 3, "ray_address": "auto", "gpus_per_client": 0.5})

    assert others == {"num_rounds": 3}
    assert told == EngineOptions(ray_address="auto", gpus_per_client=0.5)


def test_as_many_actors_as_every_resource_allows():
    """Fractions that floating point makes a little too large still fit."""
    node = {"CPU": 8.0, "GPU": 1.0, "accelerator": 3.0}

    assert _room(node, {"CPU": 1, "GPU": 0.1}) == 8
    assert _room(node, {"CPU": 0.1, "GPU": 0.1}) == 10
    assert _room(node, {"CPU": 2, "GPU": 0.0, "accelerator": 1}) == 3
    assert _room(node, {"CPU": 1, "other": 1}) == 0


@pytest.mark.parametrize("address", ["host", "host:", "ray://host", "host:99999", "http://host:1", "a b:1", "::1:6379"])
def test_what_is_no_address_is_refused_with_the_forms(address):
    with pytest.raises(ConfigError, match=r"HOST:PORT .* or ray://HOST:PORT"), ray_cluster.ray_cluster(address):
        pass


def test_a_silent_address_and_another_service_are_told_apart_in_time(monkeypatch):
    """Ray itself would wait for minutes."""
    monkeypatch.setattr(ray_cluster, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with (
                pytest.raises(RunError, match=r"nothing answered like one within 0\.5 s"),
                ray_cluster.ray_cluster(address),
            ):
                pass


def test_no_cluster_on_this_machine_is_said(monkeypatch):
    import ray._private.services as services

    def none_found(_):
        raise ConnectionError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", none_found)

    with pytest.raises(RunError, match="for the address auto, but none is running"), ray_cluster.ray_cluster("auto"):
        pass


def test_own_modules_travel_and_data_beside_them_stay(tmp_path, monkeypatch):
    """Loaded packages travel whole, others of the working folder as far as they are code; NuFed always."""
    for path in ("seldom.py", "torch.py", "pack_of_tests/__init__.py", "pack_of_tests/words.txt", ".secret.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    for path in ("rest/__init__.py", "rest/table.csv", "examples.csv", "notes/page.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    monkeypatch.setitem(
        shipped_code.sys.modules, "pack_of_tests", SimpleNamespace(__path__=[str(tmp_path / "pack_of_tests")])
    )

    shipped_code.copy_code(tmp_path / "sent", tmp_path)

    sent = {path.relative_to(tmp_path / "sent").as_posix() for path in (tmp_path / "sent").rglob("*.*")}
    assert {"seldom.py", "pack_of_tests/__init__.py", "pack_of_tests/words.txt", "rest/__init__.py"} <= sent
    assert {"nufed/__init__.py", "nufed/common/settings.py", "nufed/client/app.py"} <= sent
    assert not {"torch.py", ".secret.py", "examples.csv", "rest/table.csv", "notes/page.py"} & sent


def test_too_much_code_is_refused_with_its_largest_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_code, "MOST_BYTES", 3 * 2**20)
    monkeypatch.setattr(shipped_code, "_loaded", list)
    (tmp_path / "vocabulary.py").write_bytes(b"#" * 2**21)

    with pytest.raises(RunError, match=r"at most 3 MiB .*vocabulary.py takes 2.0 MiB"):
        shipped_code.copy_code(tmp_path / "sent", tmp_path)


def test_data_are_read_where_they_lie():
    """Tensors and arrays, also of closures and of clients made on demand, share the memory beside the pickle."""
    table, tensor = np.arange(100_000.0), torch.arange(50_000.0)
    clients = on_demand.ClientsOnDemand(3, lambda index: (table[index], tensor))

    packed = Packed.of((clients, tensor, torch.tensor(3), torch.ones(4, 2).T, torch.ones(2, dtype=torch.bfloat16)))
    made, shared, three, turned, brief = packed.value()

    assert len(packed.content) < 10_000
    assert made[2][0] == 2
    assert torch.equal(made[1][1], tensor)
    assert shared.data_ptr() in {array.ctypes.data for array in packed.arrays}
    assert (three.item(), turned.shape, brief.dtype) == (3, (2, 4), torch.bfloat16)
