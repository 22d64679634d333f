"""Starts the ranks of a training, or joins those that torchrun has started; an all-reduce for them.

Detectron2's ``launch`` knows GPUs and ``--num-gpus`` alone, and does not report reliably why a rank
died. Here torchrun's agent watches in both cases: it ends all ranks when one dies, and reports that
one's reason. Gradients are reduced by NCCL on GPUs and by gloo on the CPU.
"""

import logging
import os
import secrets
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from proscale.errors import ConfigError, ProcessFailed

logger = logging.getLogger(__name__)

SECONDS_FOR_THE_REASON = 5.0
"""How long a rank whose peer has gone waits to be ended. The agent reports the first failure, and
notices a killed process a moment later."""

_POLL_SECONDS = 0.02


def check_processes(args: Namespace, environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that as many processes can be started as the command line asks for.

    Raises:
        ConfigError: they cannot.
    """
    # torchrun has decided on the number of ranks; these flags would be ignored.
    by_torchrun = is_started_by_torchrun(environment)
    if by_torchrun and (args.num_gpus, args.num_machines) != (1, 1):
        raise ConfigError(
            f"--num-gpus is {args.num_gpus} and --num-machines {args.num_machines}: expected 1 "
            "under torchrun, which has --nproc_per_node and --nnodes"
        )
    for flag, number in (("num-gpus", args.num_gpus), ("num-machines", args.num_machines)):
        if number < 1:
            raise ConfigError(
                f"--{flag} is {number}: expected 1 or more, also for a process on the CPU, where "
                "MODEL.DEVICE is cpu"
            )
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank is {args.machine_rank}: expected 0 to {args.num_machines - 1}, below "
            "--num-machines"
        )
    # A restarted attempt has the same command line.
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if by_torchrun and restarts and not (args.resume or args.eval_only):
        raise ConfigError(
            f"--max-restarts of torchrun is {restarts}: expected 0 without --resume of "
            "train_net.py, because a restart would begin anew"
        )
    gpus = torch.cuda.device_count()
    if args.num_gpus > max(1, gpus):
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, but this machine has {gpus} GPUs; for processes on "
            f"the CPU: torchrun --nproc_per_node {args.num_gpus} train_net.py … MODEL.DEVICE cpu"
        )
    if args.num_machines * args.num_gpus > 1:
        _rendezvous(args)


def launch(main: Callable[..., object], args: Namespace, cfg: CfgNode) -> None:
    """Call ``main(args, cfg)`` in every process of the job.

    Those that torchrun has started join; otherwise ``--num-gpus`` are started on this machine, one
    of ``--num-machines``, unless it is only one: that is this process.

    Args:
        main: of a module that can be imported.
        args: of Detectron2's parser, checked by :func:`check_processes`.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine, or ``MODEL.DEVICE`` is one
            of several GPUs.
        ProcessFailed: a process started here has failed.
        SystemExit: the processes were asked to stop by a signal.
    """
    if is_started_by_torchrun(os.environ):
        _join(main, args, cfg)
    elif args.num_machines * args.num_gpus == 1:
        main(args, cfg)
    else:
        # One thread each, as torchrun has it: together they would have too many.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        start = LaunchConfig(
            min_nodes=args.num_machines,
            max_nodes=args.num_machines,
            nproc_per_node=args.num_gpus,
            run_id="proscale",
            max_restarts=0,
            **_rendezvous(args),
        )
        try:
            elastic_launch(start, _join)(main, args, cfg)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            # Where a signal reached the processes first: they end by it, or with a shell's status.
            number = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128
            if number in (signal.SIGTERM, signal.SIGINT):
                raise SystemExit(128 + number) from error
            raise ProcessFailed(f"process {rank} failed: {failure.message}") from error
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from stop


def all_reduce_max(value: int) -> int:
    """The largest ``value`` of all ranks; each of them has to call it."""
    if comm.get_world_size() == 1:
        return value
    largest = torch.tensor(value)
    # By gloo, in Detectron2's group for it: a collective on the GPU would wait for its queue.
    torch.distributed.all_reduce(
        largest, torch.distributed.ReduceOp.MAX, group=comm._get_global_gloo_group()
    )
    return int(largest)


def join_attempt(store: Any, rank: int, world_size: int, timeout: timedelta) -> Any:
    """Wait for all ranks of this attempt to start a job; each of them has to call it.

    When torchrun restarts a job's processes, they share a store with the previous ones (PyTorch
    2.14 does not separate the attempts), and would connect to addresses of dead processes. So rank
    0 draws a name for the attempt, and answers the others, who greet it with a number of their own.
    It may answer the greeting of a dead process, but only living ones confirm.

    Returns:
        a part of ``store``, which all ranks share, without entries of earlier attempts.

    Raises:
        TimeoutError: on rank 0, when the time is over; names the missing ranks.
        DistStoreError: on the others.
    """
    own = secrets.token_hex(8)
    if rank == 0:
        # 1. Answer every greeting with the attempt's name, until all ranks have confirmed it.
        attempt, missing = own, set(range(1, world_size))
        deadline = time.monotonic() + timeout.total_seconds()
        while missing:
            for other in sorted(missing):
                if store.check([f"greeting/{other}"]):
                    store.set(f"answer/{store.get(f'greeting/{other}').decode()}", attempt)
                if store.check([f"confirmation/{attempt}/{other}"]):
                    missing.remove(other)
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks {sorted(missing)} have not started in time")
            time.sleep(_POLL_SECONDS)
    else:
        # 2. Greet with a fresh number, so that an answer to a dead process is not taken for ours.
        store.set(f"greeting/{rank}", own)
        store.wait([f"answer/{own}"], timeout)
        attempt = store.get(f"answer/{own}").decode()
        # 3. Dead processes cannot confirm.
        store.set(f"confirmation/{attempt}/{rank}", "")
    return dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]


def is_started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment is one of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in environment


def _rendezvous(args: Namespace) -> dict[str, Any]:
    """Where the processes of all machines find each other, for torch's launcher."""
    if args.dist_url == "auto" and args.num_machines == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    scheme, _, address = args.dist_url.partition("://")
    if scheme != "tcp" or not address.rpartition(":")[2].isdigit():
        raise ConfigError(
            f"--dist-url is {args.dist_url}: expected tcp://HOST:PORT of machine 0, and auto with "
            "one machine"
        )
    rank = {"rank": args.machine_rank}
    return {"rdzv_backend": "static", "rdzv_endpoint": address, "rdzv_configs": rank}


def _join(main: Callable[..., object], args: Namespace, cfg: CfgNode) -> None:
    """Call ``main`` as one of several processes, which the environment describes."""
    backend = _take_device(cfg)
    timeout = timedelta(seconds=cfg.DISTRIBUTED.TIMEOUT)
    shared, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store = join_attempt(shared, rank, world_size, timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    # Detectron2 asks the group of a machine's processes for the rank on this machine. All ranks
    # have to take part in making all groups.
    machines: list[int] = [0] * world_size
    dist.all_gather_object(machines, int(os.environ["GROUP_RANK"]))
    for machine in sorted(set(machines)):
        ranks = [other for other, where in enumerate(machines) if where == machine]
        group = dist.new_group(ranks, timeout=timeout)
        if rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    # Detectron2 makes it when it is needed first, with a timeout of its own.
    dist.set_timeout(timeout, comm._get_global_gloo_group())
    try:
        main(args, cfg)
        # Rank 0 hosts the store of the others and has to be the last.
        comm.synchronize()
    except RuntimeError as error:
        # An exchange with another process failed; errors of gloo have no type of their own.
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            logger.error("Another process has gone: waiting to be ended, too")
            time.sleep(SECONDS_FOR_THE_REASON)
        raise
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def _take_device(cfg: CfgNode) -> str:
    """Make this process's GPU, if it has one, the current one; returns the backend."""
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        return "gloo"
    # A device with a number would put all ranks on one GPU.
    if cfg.MODEL.DEVICE != "cuda":
        raise ConfigError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}: expected cuda, where every process takes one "
            "GPU, and cpu, with several processes"
        )
    processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > gpus:
        raise ConfigError(
            f"torchrun has started {processes} processes on this machine, which has {gpus} GPUs: "
            f"expected --nproc_per_node 1 to {gpus}, or MODEL.DEVICE cpu"
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return "nccl"
