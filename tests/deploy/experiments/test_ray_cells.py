"""What comes back from a cluster is written where it belongs, and nothing else is; refusals of `--jobs ray`."""

import sys
from types import SimpleNamespace

import pytest
import ray

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, RunError
from nufed.deploy.commands.experiment import _num_jobs
from nufed.deploy.experiments import ray_cells
from nufed.deploy.experiments.cells import CELLS, DONE, Cell, outcome_of, run_cell
from nufed.deploy.experiments.ray_cells import Far, check_engine, packed, read_source, source_file, unpacked
from nufed.deploy.experiments.told import NO_TRACKERS

CELL = Cell(
    "own",
    RunConfig().updated(
        {"data.source": "sinusoid", "data.num-clients": 2, "federation.num-rounds": 1, "method.local-lr": 0.001}
    ),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("far")
    run_cell(CELL, folder, "cohort")
    return packed(folder)


def test_files_arrive_as_they_were_in_place_of_an_earlier_try(files, tmp_path):
    left_over = tmp_path / CELLS / CELL.name / "half"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("cut short")

    outcome = unpacked(Far(files, "node"), CELL, tmp_path)

    assert outcome == outcome_of(CELL, tmp_path)
    assert (outcome.folder / "summary.json").is_file()
    assert packed(tmp_path) == files


@pytest.mark.parametrize("name", ["cells/other-0/done.json", "../own.py", "/etc/passwd", "cells/{name}/../../x"])
def test_files_of_anything_else_are_refused_before_any_is_written(files, tmp_path, name):
    foreign = {**files, name.format(name=CELL.name): b"x"}

    with pytest.raises(RunError, match=r"from node, but others came.*no other NuFed is installed"):
        unpacked(Far(foreign, "node"), CELL, tmp_path)

    assert not [*tmp_path.iterdir()]


def test_a_run_of_other_options_is_refused(files, tmp_path):
    path = f"{CELLS}/{CELL.name}/{DONE}"
    other = {**files, path: files[path].replace(b'"seed": 0', b'"seed": 1')}
    assert other != files

    with pytest.raises(RunError, match="from node, but it has others"):
        unpacked(Far(other, "node"), CELL, tmp_path)


def test_what_is_sent_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cells, "MOST_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)

    with pytest.raises(RunError, match="Run the suite on one machine"):
        packed(tmp_path)
    with pytest.raises(RunError, match="Put it on every node"):
        read_source(str(tmp_path / "large"))


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("csv:tables/all.csv?label=y&user=site", "tables/all.csv"),
        ("npz:own.npz", "own.npz"),
        ("npz:/data/own.npz", None),
        ("npz:../own.npz", None),
        ("python:factories:make", None),
        ("digits", None),
    ],
)
def test_files_travel_that_are_named_from_the_working_folder_down(source, path):
    assert source_file(Cell("own", RunConfig().updated({"data.source": source}))) == path


@pytest.mark.parametrize("jobs", ["0", "-1", "257", "many", "1.5", "", "²"])
def test_jobs_are_a_number_or_ray(jobs):
    with pytest.raises(ConfigError, match="--jobs of 1 to 256, or ray"):
        _num_jobs(jobs, None)


def test_refusals_name_both_options(monkeypatch):
    assert (_num_jobs("7", None), _num_jobs("ray", "auto")) == (7, None)
    with pytest.raises(ConfigError, match=r"--ray-address=auto is for --jobs ray, but --jobs is 2"):
        _num_jobs("2", "auto")
    with pytest.raises(ConfigError, match="--engine ray contradicts --jobs ray"):
        check_engine("ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"Expected Ray for --jobs ray.*pip install 'flwr\[simulation\]'"):
        check_engine("cohort")


@pytest.mark.parametrize(("free", "lines"), [(0.0, ["Ray: waiting for 1 CPU"]), (1.0, [])])
def test_a_cluster_that_others_use_is_waited_for_and_it_is_said(tmp_path, monkeypatch, free, lines):
    said, owner = [], ray_cells.RayCells("auto", "cohort")
    owner._cluster = SimpleNamespace(is_own=False, nodes=list)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": free})
    work = ray_cells._Work(owner, tmp_path, NO_TRACKERS, said.append)
    work._start = lambda _: next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):  # at the first start
        next(work.finished([CELL]))

    assert [line[: len("Ray: waiting for 1 CPU")] for line in said] == lines


def test_each_run_that_computes_on_a_gpu_is_given_one(monkeypatch):
    nodes = [SimpleNamespace(resources=held) for held in ((("CPU", 4.0), ("GPU", 1.0)), (("CPU", 4.0),))]
    owner, without = (
        ray_cells.RayCells("auto", "local", _cluster=SimpleNamespace(nodes=lambda x=x: x)) for x in (nodes, nodes[1:])
    )
    monkeypatch.setenv("NUFED_NUM_THREADS", "1")

    assert owner.num_at_a_time() == 8
    monkeypatch.setenv("NUFED_DEVICE", "cuda")
    assert owner.num_at_a_time() == 1
    with pytest.raises(RunError, match="with a GPU"):
        without.num_at_a_time()
    monkeypatch.setenv("NUFED_DEVICE", "cuda:1")
    with pytest.raises(ConfigError, match="which chooses the GPU"):
        owner.num_at_a_time()
