"""Write docs/models.md: what works with every model type of transformers' mapping for causal language models.

    python -m scripts.models_page              # writes the page; takes ten minutes on a CPU
    python -m scripts.models_page qwen3_moe    # tries some types again, and replaces their rows

Each type is tried with a tiny random model. A type is *profiled* if scores are the same whether samples are read alone
or in padded rows, *layerwise* if they are the same bits layer by layer, *packed* if packed samples do not see each
other, *merged* if a transfer between two folders in the hub's layout gives the weights of one in memory, and
*fine-tuned* if the loss on answers has a finite gradient and goes down.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from act_lightning.architecture import decoder_obstacle
from act_lightning.channels import inventory
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.data.batches import packing_obstacle
from act_lightning.errors import ActError
from act_lightning.merging import merging_method
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.layerwise import LayerwiseModel, LayerwisePair
from act_lightning.profiling.offload import MemoryWeights
from act_lightning.profiling.pair import ChunkBatch, ResidentPair
from act_lightning.scorers import Activation
from act_lightning.training.loss import answer_loss
from act_lightning.transfer.injection import MaskedInjection
from act_lightning.transfer.selection import SelectedSource
from tests.loops import padded, random_samples
from tests.model_types import MODEL_TYPES, tiny_type_config
from tests.tiny import perturb, sibling_of

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
YES, NO = "yes", "—"
_CPU = torch.device("cpu")
_SAMPLES = random_samples(4, seed=3, shortest=6)
_TOLERANCE = 1.0e-4  # of the largest score; another token's values make 1e-1 of it


@dataclass(frozen=True)
class Row:
    """What works with a model type; a note says why something doesn't."""

    model_type: str
    profile: str = NO
    layerwise: str = NO
    packing: str = NO
    merge: str = NO
    fit: str = NO
    note: str = ""

    def markdown(self) -> str:
        """A row of the table."""
        return "| " + " | ".join(getattr(self, field.name) for field in fields(self)).rstrip() + " |"


def try_type(model_type: str) -> Row:
    """Try everything with a tiny model of this type."""
    if obstacle := decoder_obstacle(model_type):
        return Row(model_type, note=f"refused: {obstacle}")
    torch.manual_seed(0)
    try:
        config = tiny_type_config(model_type)
        target = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:  # configs of many types check themselves, and raise anything
        return Row(model_type, note=f"not tried: transformers builds no small one ({_first_line(error)})")
    perturb(target, 0, 0.15)
    source = sibling_of(target, seed=1)
    notes: list[str] = []

    def attempt(name: str, work: Callable[[], str | None]) -> str:
        try:
            problem = work()
        except ActError as error:
            problem = error.issues[0].problem
        except Exception as error:  # whatever the type's own code raises
            problem = _first_line(error)
        if problem:
            notes.append(f"{name}: {problem}")
        return NO if problem else YES

    profile = attempt("profile", lambda: _profile_problem(target, source))
    layerwise = attempt("layerwise", lambda: _layerwise_problem(target, source)) if profile == YES else NO
    packing = attempt("packing", lambda: packing_obstacle(config))
    merge = attempt("merge", lambda: _merge_problem(target, source))
    fit = attempt("fit", lambda: _fit_problem(target))
    return Row(model_type, profile, layerwise, packing, merge, fit, "; ".join(notes).replace("|", "/"))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:120]}"


def _scores(pair: ResidentPair | LayerwisePair, target: PreTrainedModel, rows: int) -> torch.Tensor:
    means = ChannelMeans(inventory(target), Activation())
    for _ in pair.run([ChunkBatch(batch) for batch in padded(_SAMPLES, rows)], [(Path("source"), means)]):
        pass
    return means.compute()


def _profile_problem(target: PreTrainedModel, source: PreTrainedModel) -> str | None:
    pair = ResidentPair(target, {Path("source"): source})
    alone, together = _scores(pair, target, 1), _scores(pair, target, 4)
    if float((alone - together).abs().max()) > _TOLERANCE * float(alone.abs().max()):
        return "a token's activations depend on padding after it"
    return None


def _layerwise_problem(target: PreTrainedModel, source: PreTrainedModel) -> str | None:
    expected = _scores(ResidentPair(target, {Path("source"): source}), target, 4)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(LayerwiseModel(MemoryWeights(model, _CPU), _CPU)) for model in (target, source)
        )
        found = _scores(LayerwisePair(first, {Path("source"): second}, _CPU, 1 << 20), target, 4)
    return None if torch.equal(found, expected) else "scores differ from those of whole models"


def _merge_problem(target: PreTrainedModel, source: PreTrainedModel) -> str | None:
    found = inventory(target)
    mask = torch.rand(found.total, generator=torch.Generator().manual_seed(0)) < 0.1
    merged = sibling_of(target, seed=0, scale=0.0)
    with TemporaryDirectory() as root:
        for name, model in (("target", target), ("source", source)):
            model.save_pretrained(Path(root) / name)
        chosen = SelectedSource("source", root, Path(root) / "source", 0.5, 0.1, {"a": mask}, {"a": 1})
        with MaskedInjection(found, [chosen], merging_method("task_arithmetic"), 0, 0.5) as injection:
            for name in injection.names:
                injection.apply_(name, merged.get_parameter(name).data)
        with CheckpointReader(Path(root) / "target") as reader:
            for name, values in target.named_parameters():
                if not torch.equal(reader.read(name), values):
                    return f"{name} is not what the folder holds"
    theirs, elements = dict(source.named_parameters()), found.elements(mask)
    for name, values in target.named_parameters():
        expected = values.detach().clone()
        if name in elements:
            at = elements[name].expand(values.shape)
            expected[at] += 0.5 * (theirs[name][at] - values[at])
        if not torch.allclose(merged.get_parameter(name), expected, atol=1e-6):
            return f"{name} is not merged as in memory"
    return None


def _fit_problem(target: PreTrainedModel) -> str | None:
    model = sibling_of(target, seed=0, scale=0.0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batch = padded(_SAMPLES)[0]
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss, tokens = answer_loss(model, batch)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        losses.append(float(loss.detach()))
    return None if min(losses) < losses[0] else "the loss does not go down"


def read_rows(text: str) -> list[Row]:
    """The rows of a page."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| model type")]
    return [Row(*(cell.strip() for cell in line.strip("| ").split(" | "))) for line in lines]


def page(rows: list[Row]) -> str:
    """The page with its counts."""
    decoders = [row for row in rows if not row.note.startswith("refused")]
    working = [row for row in decoders if row.profile == YES and row.fit == YES]
    text = (Path(__file__).parent / "models_page.md").read_text(encoding="utf-8")
    counts = f"Of {len(rows)} types, {len(rows) - len(decoders)} are refused since they are no decoders of text alone; "
    counts += f"of the {len(decoders)} others, {len(working)} are profiled and fine-tuned "
    counts += f"({len(working) / len(decoders):.0%})."
    table = ["| model type | profile | layerwise | packing | merge | fit | note |", "|---|---|---|---|---|---|---|"]
    table += [row.markdown() for row in rows]
    version = transformers.__version__
    return text.format(version=version, counts=counts, table="\n".join(table))


def main() -> None:
    """Write the page, or some of its rows again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    types = parser.parse_args().types
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = {row.model_type: row for row in read_rows(PAGE.read_text(encoding="utf-8"))} if types else {}
    for model_type in types or MODEL_TYPES:
        rows[model_type] = try_type(model_type)
        print(rows[model_type].markdown(), flush=True)
    PAGE.write_text(page([rows[model_type] for model_type in MODEL_TYPES]), encoding="utf-8")


if __name__ == "__main__":
    main()
