"""Machines as Ray sees them, and their reports."""

import socket

import pytest

from rm_ray.preflight.machines import (
    DRIVER_FILE,
    KIND,
    PACKAGES,
    Machine,
    MachineProbe,
    ask_gpus,
    find_software,
    make_report,
)
from rm_ray.storage import Storage

MACHINE = Machine(
    node_id="id",
    name="one",
    resources={"CPU": 64.0, "GPU": 4.0, "memory": 3e9, "object_store_memory": 1e9, f"{KIND}L4": 1},
)


def test_a_machine_has_the_resources_that_ray_schedules():
    assert (MACHINE.num_cpus, MACHINE.num_gpus, MACHINE.gpu_kind) == (64, 4, "L4")
    assert MACHINE.memory == 4 * 10**9
    bare = Machine(node_id="id", name="two", resources={})
    assert (bare.num_cpus, bare.num_gpus, bare.gpu_kind, bare.memory) == (0, 0, None, 0)


@pytest.mark.parametrize(
    ("cpus", "use_gpu", "places"), [(8, True, 4), (32, True, 2), (8, False, 8), (65, False, 0)]
)
def test_places_are_limited_by_cpus_and_gpus(cpus, use_gpu, places):
    assert MACHINE.places(cpus=cpus, use_gpu=use_gpu) == places


def test_a_probe_is_adapted_to_its_machine(tmp_path):
    probe = MachineProbe(storage=Storage.open(str(tmp_path)), token="t", paths=("/x",))
    one = probe.on(MACHINE)
    assert (one.node_id, one.has_gpus) == ("id", True)
    assert (one.token, one.paths) == ("t", ("/x",))


def test_a_report_names_the_files_that_a_machine_lacks(tmp_path):
    storage = Storage.open(str(tmp_path))
    storage.folder("t").write_text(DRIVER_FILE, "t")
    probe = MachineProbe(
        storage=storage, token="t", node_id="id", paths=(str(tmp_path), "/no/such/file")
    )
    report = make_report(probe)
    assert report.name == socket.gethostname()
    assert report.missing_paths == ("/no/such/file",)
    assert (report.error, report.storage_error, report.staging_error) == ("", "", "")
    assert report.staging_free > 0
    assert storage.folder("t").read_text("id") == "id"


def test_a_file_that_reads_back_differently_is_reported(tmp_path):
    storage = Storage.open(str(tmp_path))
    storage.folder("t").write_text(DRIVER_FILE, "other")
    report = make_report(MachineProbe(storage=storage, token="t", node_id="id"))
    assert report.storage_error == "the driver's file reads back differently"
    assert not storage.folder("t").exists("id")


def test_software_lists_the_versions_of_all_packages():
    assert find_software().keys() == {"python", *PACKAGES}


def test_no_machines_give_no_reports():
    assert ask_gpus([]) == []
