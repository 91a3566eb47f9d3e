"""Run cells of the matrix, each in processes forked from this one, which has imported everything: CELLS.json."""

import atexit
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401
import transformers.models.qwen2.modeling_qwen2
import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: F401

import act_lightning.analysis.causal_check
import act_lightning.cli.lightning_cli
import act_lightning.cli.merge
import act_lightning.sweep.finalize  # noqa: F401
from act_lightning.cli import main

SECONDS, SECONDS_AFTER_A_FAILURE = 300, 60
UNEXPECTED = 70
PROCESSES = max(3, os.cpu_count() or 1)  # at the same time


class Cell:
    """A verb on so many processes, whose statuses and output lie in its folder when it has ended."""

    def __init__(self, folder, verb, processes):
        self.folder, self.processes, self.statuses = Path(folder), processes, {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.begun, self.deadline, self.running = time.monotonic(), time.monotonic() + SECONDS, {}
        for rank in range(processes):
            if (child := os.fork()) == 0:
                ranks = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": processes}
                if processes > 1:
                    os.environ |= address | {name: str(value) for name, value in ranks.items()}
                self.work(verb, rank)
            self.running[child] = rank

    def work(self, verb, rank):
        output = os.open(self.folder / f"rank-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()  # SIGABRT prints where all threads are
        try:
            status = main([verb, "--config", str(self.folder / "config.yaml")])
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
            status = UNEXPECTED
        atexit._run_exitfuncs()  # or the process would go on as the program that has forked it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def end(self, child, status):
        rank = self.running.pop(child)
        self.statuses[rank] = status
        if status:
            self.deadline = min(self.deadline, time.monotonic() + SECONDS_AFTER_A_FAILURE)
        if not self.running:
            seconds = time.monotonic() - self.begun
            outcome = {"statuses": [self.statuses[each] for each in range(self.processes)], "seconds": seconds}
            (self.folder / "outcome.json").write_text(json.dumps(outcome))

    def abort_if_late(self):
        if time.monotonic() > self.deadline:
            self.deadline = float("inf")
            for child in self.running:
                os.kill(child, signal.SIGABRT)


def run(pending):
    active = []
    while pending or active:
        while pending and (not active or sum(cell.processes for cell in active) + pending[0][2] <= PROCESSES):
            active.append(Cell(*pending.pop(0)))
        time.sleep(0.02)
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            next(cell for cell in active if child in cell.running).end(child, os.waitstatus_to_exitcode(status))
        active = [cell for cell in active if cell.running]
        for cell in active:
            cell.abort_if_late()


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
