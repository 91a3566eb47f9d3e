"""The laboratory's models: built when they are not there yet, each from its parent, and kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.lab.abilities import rows
from act_lightning.lab.training import Recipe, Samples, Stage, build_tokenizer, encode, train

#: Each model and the one it is fine-tuned from.
PARENTS: dict[str, str | None] = {"base": None, "generalist": "base", "specialist": "generalist"}


def build_model(name: str, recipe: Recipe, parent: Path | None, folder: Path) -> None:
    """Train one model and write its Hugging Face folder; the caller's random numbers stay as they were.

    Args:
        name: A key of ``PARENTS``.
        recipe: Sizes and lengths.
        parent: The folder of the model to start from; None for the base.
        folder: Where to write, an existing folder.
    """
    stage: Stage = getattr(recipe, name)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(recipe.seed)
        model, tokenizer = _load(parent) if parent else _initialize(recipe)
        train(model, _samples(tokenizer, stage), stage, name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """More threads than one make so small a model slower, many times so beside another busy process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def _initialize(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    seen = [text for row in rows("arithmetic") + rows("words") for text in (row["prompt"], row["answer"])]
    tokenizer = build_tokenizer(seen, recipe.vocabulary)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        max_position_embeddings=256,
        initializer_range=recipe.initial_spread,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model, tokenizer


def _samples(tokenizer: PreTrainedTokenizerBase, stage: Stage) -> Samples:
    sums, words = rows("arithmetic"), rows("words")
    weights = [stage.arithmetic / len(sums)] * len(sums) + [(1 - stage.arithmetic) / len(words)] * len(words)
    return encode(tokenizer, sums + words, weights, stage.whole_text)


MODELS = tuple(PARENTS)
_UNFINISHED = ".unfinished-"


def model_folder(name: str, recipe: Recipe | None = None) -> Path:
    """The Hugging Face folder of a laboratory model, built at the first call and kept for later ones.

    Of several processes that ask at once, one builds and shows its progress while the others wait. A build that is
    killed leaves no folder that could be taken for a whole one.

    Args:
        name: One of ``MODELS``.
        recipe: Sizes and lengths; None for the laboratory's own.

    Returns:
        A folder with config, generation config, safetensors and tokenizer.

    Raises:
        ActError: There is no such model, or the cache cannot be written.
    """
    if name not in PARENTS:
        problem, hint = (
            "must name a model of the laboratory",
            f"Take one of {', '.join(f'lab:{key}' for key in MODELS)}.",
        )
        raise ActError(ConfigIssue("lab model", name, problem, hint))
    recipe = recipe or Recipe()
    root = cache_folder("laboratory") / recipe.version
    if (root / name).is_dir():
        return root / name
    _make_writable(root)
    with FileLock(root / ".lock"):
        return _ensure(name, recipe, root)


def _ensure(name: str, recipe: Recipe, root: Path) -> Path:
    """Build ``name`` after its parents, each beside its place, then renamed; the lock is ours."""
    folder = root / name
    if folder.is_dir():
        return folder
    ancestor = PARENTS[name]
    parent = _ensure(ancestor, recipe, root) if ancestor else None
    for left_over in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root))
    try:
        build_model(name, recipe, parent, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _make_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        problem = f"must be a folder that can be written ({error.strerror})"
        raise ActError(
            ConfigIssue("ACT_LIGHTNING_CACHE", str(root), problem, "Set it to a folder of yours.")
        ) from error
