"""Runs one scenario in two processes over gloo, for the tests that need that.

A test calls `run_pair`, which starts this file twice as srun would, by environment
variables alone (with the fixture ``launch``); each process writes ``<scenario>_<rank>.json`` into the folder it is given.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from mtf_trainer import CheckpointSettings
from mtf_trainer._ranks import comm_hooks, rank_errors
from mtf_trainer._ranks.agreement import StopAgreement
from mtf_trainer._ranks.comm_hooks import ddp_state, load_ddp_state
from mtf_trainer._ranks.rank_errors import RankErrors
from mtf_trainer._saving import sharded as sharded_module
from mtf_trainer._saving.commit import is_committed
from mtf_trainer._saving.files import age, put_in_order
from mtf_trainer._saving.folder_saver import FolderSaver
from mtf_trainer._saving.spread import take_out
from mtf_trainer.errors import CheckpointError, CheckpointWriteError

DEADLINE_S = 120


def run_pair(
    launch: Callable[..., Any],
    scenario: str,
    folder: Path,
    *arguments: str,
    check: bool = True,
) -> list[Any]:
    """Run *scenario* in two processes.

    Returns what each reported; with *check* false, each one's exit code and stderr.
    """
    command = (__file__, scenario, folder, *arguments)
    ended = launch(*command, processes=2, timeout_s=DEADLINE_S)
    if not check:
        return [(each.code, each.err) for each in ended]
    told = "\n".join(each.err for each in ended)
    assert [each.code for each in ended] == [0, 0], told
    names = [f"{scenario}_{rank}.json" for rank in (0, 1)]
    return [json.loads((folder / name).read_text("utf-8")) for name in names]


def agreement(fabric: Any, _: Path, __: list[str]) -> dict[str, Any]:
    """One process wants to stop at one call; both tell at which they were told to."""
    rank = fabric.global_rank
    told: dict[str, Any] = {}
    agreement = StopAgreement(fabric, values=(0, 0))
    agreement.offer(10 + rank, 20 - rank)
    for when, uneven in (("at_once", False), ("late", True)):
        calls = values_at = None
        for call in range(100_000):
            if uneven and rank == 0:
                sum(range(2000))  # a process that is slower than the other
            if values_at is None and agreement.values != (0, 0):
                values_at = call
            wanted = rank == 1 and call >= (1000 if uneven else 0)
            if agreement.reached(wanted=wanted):
                calls = call
                break
        told[when] = {
            "stopped_at": calls,
            "values_at": values_at,
            "values": agreement.values,
            "step_us": agreement.step_us,
        }
    # One is on its way as the epoch ends; only it knows of the wish.
    told["begun"] = agreement.reached(wanted=rank == 0)
    told["in_flight"] = agreement.agree_now(wanted=False)
    told["nobody"] = agreement.agree_now(wanted=False)
    told["one"] = agreement.agree_now(wanted=rank == 1)
    agreement.reached(wanted=False)
    told["max_of"] = agreement.max_of(rank, -rank, 7)
    told["after"] = agreement.agree_now(wanted=False)
    agreement.close()
    agreement.close()
    late = StopAgreement(fabric)
    dist.destroy_process_group()
    late.close()
    return told


def lost(fabric: Any, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Process 1 raises at step 3; process 0 waits for it as the argument says."""
    kind = arguments[0]
    rank = fabric.global_rank
    failing = 0 if kind == "first" else 1

    def step(number: int) -> None:
        if kind == "alike":
            raise CheckpointWriteError(folder, "is read-only for everyone")
        if number == 3 and rank == failing:
            message = f"planted in process {failing}" + "!" * 10**6
            raise ValueError(message)
        if number == 3 and kind == "hang":
            while True:  # as one that waits for a device: no error ends it
                time.sleep(60)
        dist.all_reduce(torch.zeros(2))

    with RankErrors(fabric, grace_s=0.5), RankErrors(fabric):
        dist.all_reduce(torch.zeros(1))
    assert rank_errors.EXIT_RANK_FAILED == 70
    with RankErrors(fabric, grace_s=0.5 if kind == "hang" else 30):
        for number in range(10):
            step(number)
    return {}


KINDS = ("none", "fp16", "bf16", "powersgd")
SAVED_AT = (0, 1, 3)
WINDOW = 2


class Trained:
    """A model in DDP, in several buckets, used in another order than it is defined in."""

    def __init__(self, fabric: Any, kind: Any) -> None:

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(5))
                self.norm = nn.BatchNorm1d(24)
                self.register_buffer("constant", torch.ones(2), persistent=False)

            def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
                for index in (3, 0, 4, 2, 1):
                    x_BD = torch.tanh(self.layers[index](x_BD))
                return cast(torch.Tensor, self.norm(x_BD)).square().mean()

        torch.manual_seed(0)
        module = Model()
        optimizer = torch.optim.AdamW(module.parameters(), 0.01)
        self.fabric = fabric
        self.module = module
        self.model, self.optimizer = fabric.setup(module, optimizer)
        self.ddp = next(m for m in self.model.modules() if hasattr(m, "reducer"))
        self.comm = comm_hooks.register(
            self.model, kind, powersgd_rank=2, powersgd_start_step=2
        )

    def batch(self, number: int) -> None:
        """Train on one batch of this process; each second one makes a step."""
        generator = torch.Generator().manual_seed(10 * number + self.fabric.global_rank)
        x_BD = torch.randn(6, 24, generator=generator)
        closes = number % WINDOW == WINDOW - 1
        with self.fabric.no_backward_sync(self.model, enabled=not closes):
            self.fabric.backward(self.model(x_BD))
        if closes:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def capture(self, path: Path) -> None:
        """Write all that a checkpoint would hold of this process."""
        named = self.module.named_parameters()
        content = {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grads": {name: p.grad for name, p in named if p.grad is not None},
            "ddp": ddp_state(self.model),
            "comm": None if self.comm is None else self.comm.state_dict(),
        }
        torch.save(content, path)

    def restore(self, path: Path, shared: Path) -> dict[str, Any]:
        """Load it; what is alike in all processes comes from that of the first."""
        own = torch.load(path, weights_only=True)
        common = torch.load(shared, weights_only=True)
        self.module.load_state_dict(common["model"])
        self.optimizer.load_state_dict(common["optimizer"])
        for name, parameter in self.module.named_parameters():
            parameter.grad = own["grads"].get(name)
        if self.comm is not None:
            self.comm.load_state_dict(own["comm"])
        assert load_ddp_state(self.model, own["ddp"])
        assert all(
            (own["grads"].get(name) is None) == (parameter.grad is None)
            for name, parameter in self.module.named_parameters()
        )
        return cast(dict[str, Any], own)

    def digest(self) -> str:
        """Return a digest of weights, buffers and the optimizer's state."""
        values = [*self.module.state_dict().values()]
        for state in self.optimizer.state_dict()["state"].values():
            values += state.values()
        data = b"".join(v.detach().numpy().tobytes() for v in values)
        return hashlib.sha256(data).hexdigest()


def hooks(fabric: Any, folder: Path, _: list[str]) -> dict[str, Any]:
    """Train with each hook, undisturbed; then the beginning again, with captures."""
    told: dict[str, Any] = {}
    rank = fabric.global_rank
    for kind in KINDS:
        whole = Trained(fabric, kind)
        for number in range(9):
            whole.batch(number)
        state = ddp_state(whole.model)
        assert state is not None
        told[kind] = {"digest": whole.digest(), "buckets": state["buckets"]}
        again = Trained(fabric, kind)
        for number in range(max(SAVED_AT) * WINDOW + 1):
            again.batch(number)
            steps, in_window = divmod(number + 1, WINDOW)
            if in_window and steps in SAVED_AT:
                again.capture(folder / f"{kind}_{steps}_{rank}.pt")
    return told


def hooks_resumed(fabric: Any, folder: Path, _: list[str]) -> dict[str, Any]:
    """Go on from each capture in another process, to the same end."""
    told: dict[str, Any] = {}
    rank = fabric.global_rank
    for kind in KINDS:
        for steps in SAVED_AT:
            run = Trained(fabric, kind)
            paths = [folder / f"{kind}_{steps}_{r}.pt" for r in (rank, 0)]
            own = run.restore(*paths)
            before = ddp_state(run.model)
            assert before is not None
            for number in range(steps * WINDOW + 1, 9):
                run.batch(number)
            told[f"{kind}_{steps}"] = {
                "digest": run.digest(),
                "saved": own["ddp"]["buckets"],
                "before": before["buckets"],
                "sync": own["ddp"]["require_forward_param_sync"],
                "buffers": sorted(own["ddp"]["buffers"]),
                "norm": own["ddp"]["buffers"]["norm.running_mean"].sum().item(),
            }
    return told


def sharded_strategy() -> Any:
    """Return Fabric's strategy, with every layer sharded over both processes."""

    def parallelize(module: Any, mesh: Any) -> Any:
        for layer in module:
            fully_shard(layer, mesh=mesh["data_parallel"])
        return fully_shard(module, mesh=mesh["data_parallel"])

    return ModelParallelStrategy(
        parallelize, data_parallel_size=2, tensor_parallel_size=1
    )


class Sharded:
    """A model sharded by `fully_shard`, what is saved of it, and what is wrong with that."""

    name = "epoch_001_step_000003.ckpt"

    def __init__(self, fabric: Any, folder: Path) -> None:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
        self.fabric, self.folder = fabric, folder
        self.rank = fabric.global_rank
        self.model = fabric.setup_module(module)
        optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)
        self.optimizer = fabric.setup_optimizers(optimizer)

    def train(self, steps: range) -> list[float]:
        """Return this process's part of the weights afterwards."""
        for step in steps:
            generator = torch.Generator().manual_seed(10 * step + self.rank)
            x_BD = torch.randn(4, 6, generator=generator)
            self.fabric.backward(self.model(x_BD).square().mean())
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=0.1)
            self.optimizer.step()
            self.optimizer.zero_grad()
        parts = [p.to_local().flatten().tolist() for p in self.model.parameters()]
        return [number for part in parts for number in part]

    def weight(self) -> Any:
        """Return a copy of the first parameter, in place of a gradient."""
        return next(iter(self.model.parameters())).detach().clone()

    def state(self) -> dict[str, Any]:
        """Return model and optimizer."""
        optimizer = self.optimizer.state_dict()
        return {"model": dict(self.model.state_dict()), "optimizers": [optimizer]}

    def load(self, state: Any) -> None:
        """Take over what was loaded."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizers"][0])

    def content(self) -> dict[str, Any]:
        """Return what is saved."""
        own = {"0.weight": self.weight()}
        return {
            "resume": {"epoch": 1, "pair": (1, 2.5)},
            "scheduler": {"rate": torch.tensor(0.5)},
            **self.state(),
            "locals": {
                "rank": self.rank,
                "draw": torch.tensor([self.rank]),
                "grads": own,
            },
        }

    def target(self) -> dict[str, Any]:
        """Return what is to be filled, by place."""
        zeros = torch.zeros_like(self.weight())
        return flat({**self.state(), "locals": {"grads": {"0.weight": zeros}}})

    def save(self, name: str, content: Any, folder: Path | None = None) -> Path | str:
        """Return where it lies, or the error."""
        folder = folder or self.folder
        saver = FolderSaver(folder, CheckpointSettings(asynchronous=False), parent=None)
        epoch, step = age(Path(name))
        try:
            return sharded_module.save_sharded(
                folder / name,
                content,
                lambda whole, marker: (
                    saver.finish(
                        whole, marker, epoch=epoch, global_step=step, metrics={}
                    ).path
                ),
            )
        except CheckpointError as error:
            return f"{type(error).__name__}: {error}"

    def refused(self, change: Callable[[Path], object], target: Any = None) -> str:
        """Return what loading a copy says, after *change* of it by the first process."""
        copy = self.folder / f"copy_{self.name}"
        if self.rank == 0:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.folder / self.name, copy)
            change(copy)
        self.fabric.barrier()
        try:
            wanted = self.target() if target is None else target
            sharded_module.load_sharded(copy, lambda _: wanted)
        except CheckpointError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self.fabric.barrier()
        return "loaded"


def flat(content: Any) -> dict[str, Any]:
    """Return the spread tensors in *content*, by place."""
    found: dict[str, Any] = {}
    take_out(content, found, {})
    return found


def flip(file: Path) -> None:
    """Change one bit of *file*."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit(copy: Path, **changes: Any) -> None:
    """Change entries of the marker."""
    marker = json.loads((copy / "commit.json").read_text("utf-8"))
    (copy / "commit.json").write_text(json.dumps(marker | changes), "utf-8")


def replace(copy: Path, file: str, data: bytes) -> None:
    """Put *data* into *file*, with a digest that fits."""
    (copy / file).write_bytes(data)
    marker = json.loads((copy / "commit.json").read_text("utf-8"))
    digest = hashlib.sha256(data).hexdigest()
    edit(copy, files=marker["files"] | {file: digest})


def sharded(fabric: Any, folder: Path, _: list[str]) -> dict[str, Any]:
    """Train, save in the middle, train on; load, and train on again."""
    run = Sharded(fabric, folder)
    run.train(range(3))
    saved = run.weight()
    run.save(run.name, run.content())
    path = Path(run.save(run.name, run.content()))  # the later replaces it
    told: dict[str, Any] = {
        "files": sorted(p.name for p in path.iterdir()),
        "left": sorted(p.name for p in folder.glob("*epoch*")),
        "full": [p.full_tensor().tolist() for p in run.model.parameters()],
        "whole": run.train(range(3, 6)),
    }
    told["whole_again"] = loaded_alone(run, path)
    wanted = run.target()
    loaded = sharded_module.load_sharded(path, lambda _: wanted)
    run.load(loaded)
    same = loaded["locals"][0]["grads"]["0.weight"].to_local()
    return told | {
        "resume": loaded["resume"]["pair"][1],
        "rate": loaded["scheduler"]["rate"].item(),
        "locals": [(x["rank"], x["draw"].item()) for x in loaded["locals"]],
        "grads": torch.equal(same, saved.to_local()),
        "again": run.train(range(3, 6)),
        "refused": damaged(run),
        **interrupted(run),
    }


def loaded_alone(run: Sharded, path: Path) -> bool:
    """Tell whether one process alone gets what is in the pieces of both."""
    alone = sharded_module.load_whole(path)
    wanted = run.target()
    loaded = sharded_module.load_sharded(path, lambda _: wanted)
    names = loaded["model"]
    return all(
        torch.equal(alone["model"][n], loaded["model"][n].full_tensor()) for n in names
    )


def damaged(run: Sharded) -> dict[str, str]:
    """Load what is not whole, or not this model's."""
    refused, target, state = run.refused, run.target(), run.state()
    other = Path(run.save("epoch_001_step_000004.ckpt", run.content()))
    foreign = (other / "rank_00001.pt").read_bytes()
    metadata = (run.folder / run.name / ".metadata").read_bytes()
    moved = metadata.replace(b"__1_0.distcp", b"../../passwd")
    code = pickle.dumps(Malicious(run.folder / "ran"))
    alike = flat({"model": dict.fromkeys(state["model"], run.weight())})
    fewer = flat({"model": state["model"]})
    fewer["/locals/grads/0.weight"] = run.weight()
    return {
        "uncommitted": refused(lambda c: (c / "commit.json").unlink()),
        "marker": refused(lambda c: (c / "commit.json").write_text("{", "utf-8")),
        "escape": refused(lambda c: edit(c, files={"../rank_00000.pt": "0" * 64})),
        "version": refused(lambda c: edit(c, version=1)),
        "flipped": refused(lambda c: flip(c / "__1_0.distcp")),
        "missing": refused(lambda c: (c / "__0_0.distcp").unlink()),
        "moment": refused(lambda c: replace(c, "rank_00001.pt", foreign)),
        "garbage": refused(lambda c: replace(c, "shared.pt", b"garbage")),
        "code": refused(lambda c: replace(c, ".metadata", code)),
        "elsewhere": refused(lambda c: replace(c, ".metadata", moved)),
        "fewer": refused(lambda _: None, fewer),
        "none": refused(lambda _: None, {}),
        "more": refused(lambda _: None, target | {"/more": run.weight()}),
        "shape": refused(lambda _: None, target | alike),
        "intact": refused(lambda _: None),
    }


def interrupted(run: Sharded) -> dict[str, Any]:
    """Save after a save that was cut off, and where nothing can be saved."""
    folder, path = run.folder, run.folder / run.name
    other = folder / "epoch_001_step_000004.ckpt"
    if run.rank == 0:
        (folder / ".epoch_009_step_000009.ckpt.tmp").mkdir()
        path.rename(folder / f".{run.name}.old")
        shutil.copytree(other, folder / f".{other.name}.old")
        put_in_order(folder)
    run.fabric.barrier()
    small = Path(run.save("epoch_002_step_000005.ckpt", {"resume": {}, "locals": 1}))
    content = sharded_module.load_sharded(small, lambda _: {})
    del content["certificate"]
    told: dict[str, Any] = {
        "committed": [is_committed(p) for p in (path, small, folder)],
        "small": content,
        "in_order": sorted(p.name for p in folder.glob(".*") if p.name != ".lock"),
    }
    file = folder / "file"
    file.touch()
    told["unwritable"] = run.save(run.name, run.content(), file)
    for kind, own in (("unpicklable", lambda: 1), ("code", Malicious(folder / "ran"))):
        bad = {"locals": own if run.rank == 1 else 1, "model": run.state()["model"]}
        told[kind] = run.save("epoch_099_step_000099.ckpt", bad)
    run.fabric.barrier()
    told["left_of_bad"] = [p.name for p in folder.glob("*epoch_099*")]
    told["code_ran"] = (folder / "ran").exists()
    return told


class Malicious:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


SCENARIOS: dict[str, Callable[[Any, Path, list[str]], dict[str, Any]]] = {
    f.__name__: f for f in (agreement, lost, hooks, hooks_resumed, sharded)
}


def main(scenario: str, folder: Path, arguments: list[str]) -> None:
    """Be one of the two processes."""
    # Several buckets for a small model.
    strategy: Any = DDPStrategy(bucket_cap_mb=0.005)
    if scenario == "sharded":
        strategy = sharded_strategy()
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    told = SCENARIOS[scenario](fabric, folder, arguments)
    name = f"{scenario}_{fabric.global_rank}.json"
    (folder / name).write_text(json.dumps(told), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
