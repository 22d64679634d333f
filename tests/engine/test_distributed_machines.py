"""Two machines: by Detectron2's arguments, and as two network namespaces by torchrun."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow

STEPS = 2
JOB = {"orders": {"fixed_points": True}}
OVERRIDES = ("SOLVER.MAX_ITER", STEPS, "SOLVER.BASE_LR", 0.0)


@pytest.fixture
def wait_for(start_training):
    """Returns a function: processes by the names of their jobs → waits, and for job ``one``."""

    def wait_for(jobs: dict[str, subprocess.Popen]) -> None:
        one = start_training("one", *OVERRIDES, **JOB)
        for name, process in {**jobs, "one": one}.items():
            assert process.wait(timeout=240) == 0, start_training.output(name)

    return wait_for


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_detectron2s_arguments(start_training, wait_for, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    jobs = {
        f"machine_{rank}": start_training(
            f"machine_{rank}",
            *OVERRIDES,
            flags=["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url],
        )
        for rank in range(2)
    }
    wait_for(jobs)
    log = tmp_path / "machine_0" / "output" / "log.txt"
    assert "World size: 2" in log.read_text()
    assert start_training.results("machine_0") == start_training.results("one")


@pytest.fixture
def namespaces() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces that reach each other: name, device and address of each."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip (package iproute2)")
    mark = f"{os.getpid():x}"
    made = [(f"ps{mark}{i}", f"ve{mark}{i}", f"10.213.7.{i + 1}") for i in range(2)]
    ends = [("name", device, "netns", name) for name, device, _ in made]
    commands = [
        *(f"netns add {name}" for name, _, _ in made),
        f"link add {' '.join(ends[0])} type veth peer {' '.join(ends[1])}",
        *(f"-n {name} addr add {address}/24 dev {device}" for name, device, address in made),
        *(f"-n {name} link set {end} up" for name, device, _ in made for end in ("lo", device)),
    ]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ip {command}: {done.stderr.strip()}")
        yield made
    finally:
        for name, _, _ in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_two_network_namespaces(start_training, wait_for, namespaces, backend):
    first, jobs = namespaces[0][2], {}
    for rank, (namespace, device, address) in enumerate(namespaces):
        where = {
            "c10d": (
                *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first}:29477"),
                *("--rdzv_id", "test", "--rdzv_conf", f"is_host={rank == 0}"),
            ),
            "static": ("--node_rank", str(rank), "--master_addr", first),
        }[backend]
        jobs[f"machine_{rank}"] = start_training(
            f"machine_{rank}",
            *OVERRIDES,
            **JOB,
            torchrun=("--nnodes", "2", "--nproc_per_node", "1", "--local_addr", address, *where),
            prefix=("ip", "netns", "exec", namespace),
            environment={"GLOO_SOCKET_IFNAME": device},
        )
    wait_for(jobs)
    two, one = (start_training.losses(name) for name in ("machine_0", "one"))
    assert len(two) == len(start_training.losses("machine_1", rank=1)) == STEPS
    for (_, loss), (_, expected) in zip(two, one, strict=True):
        assert float.fromhex(loss) == pytest.approx(float.fromhex(expected), rel=1e-5)
    assert start_training.results("machine_0") == start_training.results("one")
