"""The laboratory's models: built when they are first needed, each from its parent, and cached."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
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
from act_lightning.lab.training import Stage, build_tokenizer, encode, train

#: Each model and the one it is fine-tuned from.
PARENTS: dict[str, str | None] = {"base": None, "generalist": "base", "specialist": "generalist"}
MODELS = tuple(PARENTS)
_UNFINISHED = ".unfinished-"

#: Raised by hand when the questions, the tokenizer or the training loop change.
GENERATION = 2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the models' weights.

    Attributes:
        seed: Of weights and of the order of samples.
        vocabulary: Entries of the tokenizer, 256 of them bytes.
        hidden_size: Features of the residual stream.
        layers: Decoder layers.
        heads: Attention heads, half as many for keys and values.
        initial_spread: Standard deviation of random weights: 0.02, usual for wide models, learns late at this width.
        base: Pretraining.
        generalist: From the base: all abilities.
        specialist: From the generalist: arithmetic only, so the words are forgotten rather than never learned.
    """

    seed: int = 0
    vocabulary: int = 512
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    initial_spread: float = 0.06
    base: Stage = field(default_factory=lambda: Stage(1200, 32, 3e-3, 0.5, whole_text=True))
    generalist: Stage = field(default_factory=lambda: Stage(240, 32, 1.5e-3, 0.25))
    specialist: Stage = field(default_factory=lambda: Stage(300, 32, 8e-4, 1.0))

    @property
    def version(self) -> str:
        """A name that changes with any of the settings, for the cache.

        >>> Recipe(seed=1).version == Recipe(seed=2).version
        False
        """
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()
        return f"v{GENERATION}-{digest[:10]}"


def model_folder(name: str, recipe: Recipe | None = None) -> Path:
    """The Hugging Face folder of a laboratory model, built at the first call and cached for later ones.

    If several processes ask at once, one builds and shows its progress while the others wait. A build that is killed
    leaves no folder that looks complete.

    Args:
        name: One of ``MODELS``.
        recipe: Sizes and lengths; by default the laboratory's own.

    Returns:
        A folder with config, generation config, safetensors and tokenizer.

    Raises:
        ActError: There is no such model, or the cache cannot be written.
    """
    if name not in PARENTS:
        hint = f"Choose one of {', '.join(f'lab:{model}' for model in MODELS)}."
        raise ActError(ConfigIssue("lab model", name, "must name a model of the laboratory", hint))
    recipe = recipe or Recipe()
    root = cache_folder("laboratory") / recipe.version
    if (root / name).is_dir():
        return root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        problem = f"must be a folder that can be written ({error.strerror})"
        issue = ConfigIssue("ACT_LIGHTNING_CACHE", str(root), problem, "Set it to a folder of yours.")
        raise ActError(issue) from error
    with FileLock(root / ".lock"):
        return _build_with_parents(name, recipe, root)


def _build_with_parents(name: str, recipe: Recipe, root: Path) -> Path:
    """Build what is missing, each model in a temporary folder that is then renamed; the caller holds the lock."""
    folder = root / name
    if folder.is_dir():
        return folder
    ancestor = PARENTS[name]
    parent = _build_with_parents(ancestor, recipe, root) if ancestor else None
    for leftover in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root))
    try:
        build_model(name, recipe, parent, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def build_model(name: str, recipe: Recipe, parent: Path | None, folder: Path) -> None:
    """Train one model and write its Hugging Face folder; the state of torch's random generator is restored.

    Args:
        name: A key of ``PARENTS``.
        recipe: Sizes and lengths.
        parent: The folder of the model to start from; None for the base.
        folder: Where to write, an existing folder.
    """
    stage = {"base": recipe.base, "generalist": recipe.generalist, "specialist": recipe.specialist}[name]
    sums, words = rows("arithmetic"), rows("words")
    weights = [stage.arithmetic / len(sums)] * len(sums) + [(1 - stage.arithmetic) / len(words)] * len(words)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(1)  # more make so small a model slower, many times so beside another busy process
        try:
            if parent is None:
                model, tokenizer = _initialize(recipe, sums + words)
            else:
                model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(parent)
            train(model, encode(tokenizer, sums + words, weights, stage.whole_text), stage, name)
        finally:
            torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _initialize(recipe: Recipe, rows: list[dict[str, str]]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with random weights, and a tokenizer that learns its vocabulary from ``rows``."""
    tokenizer = build_tokenizer([text for row in rows for text in (row["prompt"], row["answer"])], recipe.vocabulary)
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
