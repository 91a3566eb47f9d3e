"""What runs on a GPU and how fast: profiling, attribution, fine-tuning, generation and merging, in one table.

    python -m benchmarks.gpu                                  # at most 8 minutes on an H100 or H200
    python -m benchmarks.gpu --parts sft-7b-8bit              # only this; what has rows already is not run again
    python -m benchmarks.gpu --device cpu --tiny --minutes 3  # the same code with tiny shapes, as the tests run it
    python -m benchmarks.gpu --device cpu --parts 135m 135m-bfloat16  # what a CPU can say, in its processor's time

It needs nothing but the package: models have random weights in the shapes of Qwen2.5-1.5B and 7B, in bfloat16, and are
kept in ``--work``. First the device's results are compared with the CPU's on a tiny model; if they differ, nothing is
timed. Every part is a process of its own, so that one that fails leaves the others' rows; rows are written as they are
measured, to ``rows.jsonl`` in ``--out``, and ``table.md`` is made from all of them.

*beside* says what a rate is divided by, measured in turns in the same process: two bare forward passes on the same
batches without hooks (profiling); forward and backward passes of the target that keep no gradient (attribution);
transformers' own ``generate``. *MFU* counts operations as ``TokenThroughput`` does, by the speed that Lightning knows
of the device. *forecast* is what ``plan`` foresees of that memory. Batches of profiling and attribution are one row;
half answers means that the second half of every row is answers.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from act_lightning.api import Mask, Scores, merge
from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.callbacks.throughput import FlopCount
from act_lightning.channels import inventory
from act_lightning.checkpoints.models import load_config, meta_model
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.evaluation.generation import generate_answers
from act_lightning.module import AbilityTransferModule
from act_lightning.planning.checks import Run
from act_lightning.planning.training_forecast import training_parts
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.gradients import AttributionPass, LayerwiseAttributionPass, each_gradient
from act_lightning.profiling.measurement import Target, measurements
from act_lightning.profiling.memory import PairSettings
from act_lightning.profiling.pair import ChunkBatch
from act_lightning.profiling.placement import open_pair
from act_lightning.profiling.samples import Sampling
from act_lightning.scorers import Activation, Attribution
from act_lightning.scores import ScoreRecord
from act_lightning.training.loss import answer_loss
from act_lightning.transfer.settings import TransferSettings
from benchmarks import sft

TINY = sft.LLAMA | {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
TINY |= {"head_dim": 8}
ROUNDS = 3
_SILENT: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        part: Which part measured it.
        what: What was measured.
        rate: Tokens a second; of a merge, bytes.
        ratio: That rate over that of ``beside``; of a check, the largest difference from the CPU.
        mfu: Share of the device's speed.
        peak: Most bytes on the device at once; 0 on a CPU.
        forecast: Bytes that ``plan`` foresees.
        note: Why there is nothing, or what is to be known.
    """

    part: str
    what: str
    rate: float | None = None
    beside: str = ""
    ratio: float | None = None
    mfu: float | None = None
    peak: int | None = None
    forecast: int | None = None
    note: str = ""


class Sizes(NamedTuple):
    """How much work the parts do.

    Attributes:
        tokens: Of a batch.
        batches: Of a round of profiling.
        micro_batches: Of an update.
        updates: Of a fit, the first of which is not timed.
        prompts: That are answered together, with as many new tokens as the prompt has.
    """

    tokens: int = 8192
    batches: int = 4
    micro_batches: int = 4
    updates: int = 4
    prompts: int = 32


@dataclass(frozen=True)
class Bench:
    """Where and on what a part runs."""

    device: torch.device
    work: Path
    tiny: bool
    part: str

    @property
    def sizes(self) -> Sizes:
        """How much it does."""
        if self.tiny:
            return Sizes(64, 2, 2, 2, 2)
        return Sizes(512, 2) if self.part.startswith("135m") else Sizes()

    def trainer(self, root: Path | None = None) -> L.Trainer:
        """A Trainer on the device."""
        trainer = L.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            default_root_dir=root or self.work,
            **_SILENT,
        )
        trainer.strategy.setup_environment()
        return trainer

    def pair(self, shape: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
        """Target and source on disk, made once."""
        name = "tiny" if self.tiny else shape
        folder = self.work / f"{name}-{dtype}".replace("torch.", "")
        if not (folder / "source").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            sizes = dict(TINY if self.tiny else sft.SHAPES[shape])
            settings = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
            config = AutoConfig.for_model(sizes.pop("architecture"), **settings, **sizes)
            torch.manual_seed(0)
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            model.save_pretrained(folder / "target")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
            model.save_pretrained(folder / "unfinished")
            (folder / "unfinished").rename(folder / "source")
        return folder / "target", folder / "source"

    def batches(self, folder: Path, answers: float, count: int | None = None) -> list[Batch]:
        """Rows of random tokens on the device, the last of which are answers."""
        generator = torch.Generator().manual_seed(1)
        vocabulary, result = load_config(folder).vocab_size, []
        for _ in range(count or self.sizes.batches):
            ids = torch.randint(1, vocabulary, (1, self.sizes.tokens), generator=generator)
            labels = ids.clone()
            labels[:, : round((1 - answers) * ids.shape[1])] = -100
            result.append({"input_ids": ids, "labels": labels})
        return result

    def now(self) -> float:
        """Seconds, when the device has done all that it was given; the processor's on a CPU, which others use, too."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> int:
        """Most bytes on the device since this was asked last."""
        if self.device.type != "cuda":
            return 0
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak

    def mfu(self, operations: float, seconds: float, dtype: torch.dtype = torch.bfloat16) -> float | None:
        """Share of the device's speed, where Lightning knows it."""
        most = get_available_flops(self.device, dtype) if self.device.type == "cuda" else None
        return operations / seconds / most if most else None

    def in_turns(self, works: Sequence[Callable[[], object]]) -> list[float]:
        """The median seconds of each, run in turns after one round that warms up."""
        times: list[list[float]] = [[] for _ in works]
        for _ in range(1 + ROUNDS):
            for work, found in zip(works, times, strict=True):
                start = self.now()
                work()
                found.append(self.now() - start)
        return [statistics.median(found[1:]) for found in times]


def bare(models: Sequence[PreTrainedModel], batches: Sequence[Batch]) -> None:
    """Forward passes that compute the logits of answer tokens only."""
    with torch.no_grad():
        for batch in batches:
            ids, positions = batch["input_ids"], (batch["labels"][0] != -100).nonzero().squeeze(1)
            for model in models:
                device = model.device
                model(input_ids=ids.to(device), use_cache=False, logits_to_keep=positions.to(device))


def profiled(
    bench: Bench,
    target: Path,
    source: Path,
    placement: str,
    kinds: dict[str, list[Batch]],
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Row]:
    """Profiling beside bare forward passes of the same pair, which is resident for these."""
    channels = inventory(meta_model(target))
    models = [load_on_device(folder, dtype, bench.device) for folder in (target, source)]
    plain = {name: bench.in_turns([partial(bare, models, batches)])[0] for name, batches in kinds.items()}
    if placement != "resident":
        models = []
    settings = PairSettings(placement, None, bench.sizes.tokens)
    with open_pair(Target("target", target, None, dtype), [source], settings, bench.trainer()) as (pair, _):

        def profile(batches: list[Batch]) -> None:
            means = ChannelMeans(channels, Activation()).to(bench.device)
            for _ in pair.run(map(ChunkBatch, batches), [(source, means)]):
                pass

        for name, batches in kinds.items():
            bench.peak()
            if placement == "resident":
                plain[name], seconds = bench.in_turns([partial(bare, models, batches), partial(profile, batches)])
            else:
                (seconds,) = bench.in_turns([partial(profile, batches)])
            tokens = sum(batch["input_ids"].numel() for batch in batches)
            what = f"profile, {placement}, {name}"
            ratio = plain[name] / seconds
            yield Row(bench.part, what, tokens / seconds, "two bare forward passes", ratio, peak=bench.peak())


def check(bench: Bench) -> Iterator[Row]:
    """The device's results on a tiny model beside the CPU's, in float32; raises SystemExit if they differ."""
    torch.backends.cuda.matmul.allow_tf32 = False
    tiny = Bench(bench.device, bench.work, True, bench.part)
    target, source = tiny.pair("tiny", torch.float32)
    batches, found = tiny.batches(target, 0.5), {}
    for device in dict.fromkeys((torch.device("cpu"), bench.device)):
        here = Bench(device, bench.work, True, bench.part)
        found[device.type] = {
            "activation scores": _scores(here, target, source, Activation(), batches),
            "attribution": _scores(here, target, source, Attribution(), batches),
            "losses of a fit": torch.tensor(_fit(here, target, "32-true")[0]["losses"]),
            "greedy answers": _answers(here, load_on_device(target, torch.float32, device))[0].double(),
        }
    for what, expected in found["cpu"].items():
        values = found[bench.device.type][what]
        difference = float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
        good = difference <= (0.0 if what == "greedy answers" else 1e-3)
        yield Row(bench.part, what, beside="the CPU", ratio=difference, note="" if good else "differs")
        if not good:
            raise SystemExit(f"{what}: differs from the CPU's by {difference:.2g} of the largest; nothing is timed")


def _scores(bench: Bench, target: Path, source: Path, scorer: Any, batches: list[Batch]) -> Tensor:  # noqa: ANN401
    settings = TransferSettings(selection=scorer)
    root = bench.work / f"scores-{bench.device.type}"
    shutil.rmtree(root, ignore_errors=True)
    sources = [AbilitySource(str(source), {"a": batches})]
    profiler = ActivationDifferenceProfiler(sources, bench.sizes.tokens, str(target), placement="resident")
    profiler.profile(bench.trainer(root), L.LightningModule(), settings=settings)
    (path,) = root.rglob("a.safetensors")
    return Scores.load(path, str(target)).values.double()


def attribution(bench: Bench, target: Path, source: Path, dtype: torch.dtype = torch.bfloat16) -> Iterator[Row]:
    """Beside a forward and backward pass of the target that hands every gradient over, and keeps none."""
    batches = bench.batches(target, 0.5)
    place = Target("target", target, None, dtype)
    model = load_on_device(target, dtype, bench.device)
    plain_model = load_on_device(target, dtype, bench.device)
    trainer = bench.trainer()
    (measurement,) = measurements([AbilitySource(str(source), {"a": batches})], place, None, bench.work, Attribution())
    scorer = Attribution(tokens_per_batch=bench.sizes.tokens)
    sampling = Sampling(TransferSettings(selection=scorer))

    def plain() -> None:
        with each_gradient(plain_model, lambda *_: None):
            for batch in batches:
                loss, _ = answer_loss(plain_model, {name: values.to(bench.device) for name, values in batch.items()})
                loss.backward()

    tokens = sum(batch["input_ids"].numel() for batch in batches)
    for placement, kind in (("resident", AttributionPass), ("layerwise", LayerwiseAttributionPass)):
        passes = kind(model, place, scorer, sampling, trainer)
        passes.read_source(source)
        bench.peak()
        without, seconds = bench.in_turns([plain, partial(passes.measure, measurement)])
        what, beside = f"attribution {placement}, half answers", "forward and backward"
        yield Row(bench.part, what, tokens / seconds, beside, without / seconds, peak=bench.peak())


def _answers(bench: Bench, model: PreTrainedModel) -> tuple[Tensor, list[float]]:
    """Greedy answers, as lengths of texts and tokens, and the seconds beside those of transformers alone."""
    from tokenizers import Tokenizer, models

    vocabulary = {str(number): number for number in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary)), pad_token="0")
    length = 16 if bench.tiny else 128
    ids = torch.randint(1, len(vocabulary), (bench.sizes.prompts, length), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answers = []

    def ours() -> None:
        answers[:] = generate_answers(model, tokenizer, batch, length)

    config = GenerationConfig(do_sample=False, max_new_tokens=length, pad_token_id=0, eos_token_id=0)

    def plain() -> None:
        on_device = {name: values.to(model.device) for name, values in batch.items()}
        model.generate(**on_device, generation_config=config)  # type: ignore[operator]

    seconds = bench.in_turns([plain, ours])
    words = [int(word) for answer in answers for word in answer.text.split()]
    return torch.tensor([*words, *(answer.tokens for answer in answers)]), seconds


def small(bench: Bench) -> Iterator[Row]:
    """1.5 billion parameters: profiling, attribution, generation, and a merge from disk."""
    target, source = bench.pair("qwen2.5-1.5b")
    kinds = {"all answers": bench.batches(target, 1.0), "half answers": bench.batches(target, 0.5)}
    yield from profiled(bench, target, source, "resident", kinds)
    yield from attribution(bench, target, source)
    bench.peak()
    (plain, seconds) = _answers(bench, load_on_device(target, torch.bfloat16, bench.device))[1]
    tokens = bench.sizes.prompts * (16 if bench.tiny else 128)
    what = f"generation, {bench.sizes.prompts} prompts"
    yield Row(bench.part, what, tokens / seconds, "transformers", plain / seconds, peak=bench.peak())
    channels = inventory(meta_model(target))
    draws = torch.rand(channels.total, generator=torch.Generator().manual_seed(3))
    scores = Scores(channels, draws, ScoreRecord(1, 1, 0, {}, {}, "", "bfloat16"), "random")
    start = time.perf_counter()
    merge(target, source, Mask(scores, draws < 0.01, 0.01), out=bench.work / "merged", overwrite=True)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    yield Row(bench.part, "merge of 1 % of the channels from disk (bytes of the target)", size / seconds)


def smallest(bench: Bench, dtype: torch.dtype) -> Iterator[Row]:
    """135 million parameters, not too many for a CPU: profiling and attribution."""
    target, source = bench.pair("135m", dtype)
    kinds = {"all answers": bench.batches(target, 1.0), "half answers": bench.batches(target, 0.5)}
    for placement in ("resident", "layerwise"):
        yield from profiled(bench, target, source, placement, kinds, dtype)
    yield from attribution(bench, target, source, dtype)


def large(bench: Bench) -> Iterator[Row]:
    """7 billion parameters: profiling in every placement."""
    target, source = bench.pair("qwen2.5-7b")
    kinds = {"all answers": bench.batches(target, 1.0), "half answers": bench.batches(target, 0.5)}
    for placement in ("resident", "offload", "layerwise"):
        yield from profiled(bench, target, source, placement, kinds)


def _fit(bench: Bench, folder: Path, precision: str, **settings: Any) -> tuple[dict[str, Any], Run]:
    """A fit on rows of full length, all of them answers, as ``benchmarks/sft.py`` runs it; and its config."""
    sizes, draw = bench.sizes, torch.Generator().manual_seed(4)
    length, count = min(sizes.tokens, 2048), sizes.updates * sizes.micro_batches
    rows = sizes.tokens // length
    vocabulary = load_config(folder).vocab_size
    ids = torch.randint(1, vocabulary, (count * rows, length), generator=draw).tolist()
    defaults: dict[str, Any] = {"optimizer": "adam", "strategy": "auto", "checkpointing": False, "compile": False}
    arguments = argparse.Namespace(
        **defaults | settings,
        device=bench.device.type,
        precision=precision,
        attention="auto",
        rows=rows,
        accumulate=sizes.micro_batches,
    )
    module = AbilityTransferModule(
        str(folder), optimizer=arguments.optimizer, gradient_checkpointing=arguments.checkpointing
    )
    data = AbilityDataModule(batch_size=rows, max_length=length)
    trainer = {"precision": precision, "devices": 1, "strategy": "auto", "accumulate_grad_batches": sizes.micro_batches}
    run = Run(module, data, ActivationDifferenceProfiler(), MaskedTaskVectorInjection(), trainer)
    return sft.ours(folder, [(row, row) for row in ids], arguments), run


def fitted(
    bench: Bench,
    shape: str,
    precision: str = "bf16-mixed",
    needs: str = "torch",
    **settings: Any,
) -> Iterator[Row]:
    """Full-parameter fine-tuning."""
    what = f"fit, {precision}"
    if find_spec(needs) is None:
        yield Row(bench.part, what, note=f"{needs} is not installed")
        return
    folder, _ = bench.pair(shape)
    if settings.get("strategy") == "fsdp2":
        from lightning.pytorch.strategies import ModelParallelStrategy

        settings["strategy"] = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    bench.peak()
    found, run = _fit(bench, folder, precision, **settings)
    flops, sizes = FlopCount.of(load_config(folder)), bench.sizes
    length = run.data.max_length
    of_a_token = flops.operations(torch.tensor([length]), length) / length
    parameters = inventory(meta_model(folder)).parameters
    forecast = sum(training_parts(run, parameters, folder).values())
    yield Row(
        bench.part,
        f"{what}, {sizes.tokens} tokens at a time",
        found["tokens/s"],
        mfu=bench.mfu(of_a_token * found["tokens/s"], 1.0),
        peak=found["peak"] if bench.device.type == "cuda" else 0,
        forecast=forecast,
    )


_8BIT = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"weight_decay": 0.0}}
_ROUNDING = {
    "class_path": "torchao.optim.AdamW8bit",
    "init_args": {"weight_decay": 0.0, "bf16_stochastic_round": True},
}
_rounded = partial(
    fitted, shape="qwen2.5-7b", precision="bf16-true", needs="torchao", optimizer=_ROUNDING, checkpointing=True
)
PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "check": check,
    "1.5b": small,
    "sft-1.5b": partial(fitted, shape="qwen2.5-1.5b"),
    "7b": large,
    "sft-7b-rounding": _rounded,
    "sft-7b-8bit": partial(fitted, shape="qwen2.5-7b", needs="bitsandbytes", optimizer=_8BIT, checkpointing=True),
    "sft-1.5b-compiled": partial(fitted, shape="qwen2.5-1.5b", compile=True),
    "sft-7b-rounding-compiled": partial(_rounded, compile=True),
    "sft-1.5b-fsdp2": partial(fitted, shape="qwen2.5-1.5b", strategy="fsdp2"),
    "135m": partial(smallest, dtype=torch.float32),
    "135m-bfloat16": partial(smallest, dtype=torch.bfloat16),
}
"""In the order in which they run: what a short run must not miss comes first."""


def table(rows: Sequence[Row], where: str) -> str:
    """All rows as Markdown."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = [where, "", "| part | what | per second | ratio | beside | MFU | peak GB | forecast GB | |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        memory = [cell(None if not size else size / 1e9, ".1f") for size in (row.peak, row.forecast)]
        shown = [cell(row.rate, ",.0f"), cell(row.ratio, ".3g"), row.beside, cell(row.mfu, ".1%"), *memory, row.note]
        lines.append("| " + " | ".join([row.part, row.what, *shown]) + " |")
    return "\n".join(lines) + "\n"


_COMPLETE = "complete"  # the last row of a part that has measured all


def read_rows(path: Path) -> list[Row]:
    """The latest row of each measurement so far."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list({(row.part, row.what): row for row in (Row(**json.loads(line)) for line in lines)}.values())


def run_part(options: argparse.Namespace) -> None:
    """Run one part in this process, and write its rows one by one."""
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(torch.device(options.device), options.work, options.tiny, options.part)
    noted = False
    with (options.out / "rows.jsonl").open("a", encoding="utf-8", buffering=1) as file:
        for row in PARTS[options.part](bench):
            file.write(json.dumps(asdict(row)) + "\n")
            noted = noted or bool(row.note)
        if not noted:
            file.write(json.dumps(asdict(Row(options.part, _COMPLETE))) + "\n")


def run_all(options: argparse.Namespace) -> int:
    """Run what has no rows yet, each part in a process of its own, until the time is over."""
    path, end = options.out / "rows.jsonl", time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for part in options.parts or PARTS:
        left = end - time.monotonic()
        if Row(part, _COMPLETE) in read_rows(path):
            continue
        if left <= 0:
            print(f"{part}: no time left; the same command goes on with it")
            continue
        print(f"{part}: at most {left:.0f} s", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--device", options.device]
        command += ["--out", str(options.out), "--work", str(options.work), *(["--tiny"] if options.tiny else [])]
        try:
            status = subprocess.run(command, timeout=left, check=False).returncode
        except subprocess.TimeoutExpired:
            status = 1
            print(f"{part}: stopped, the time is over")
        failed += status != 0
        if status and part == "check":
            break
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    where = f"{device}, torch {torch.__version__}, {'tiny shapes' if options.tiny else 'random weights'}."
    text = table([row for row in read_rows(path) if row.what != _COMPLETE], where)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return min(1, failed)


def main() -> int:
    """Run parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in place of all others")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=(), help="by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="rows and table")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu/work"), help="models, 35 GB")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.part:
        return run_all(options)
    run_part(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
