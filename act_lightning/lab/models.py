"""The laboratory's models: a base and two siblings from it, built when they are first needed, and cached."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
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

MODELS = ("base", "generalist", "specialist")

#: Raised by hand when the questions, the tokenizer or the training loop change.
GENERATION = 3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the models' weights.

    Attributes:
        seed: Of weights and of the order of samples.
        vocabulary: Entries of the tokenizer, 256 of them bytes; few, so that the head has 6 % of the channels, as in
            models of billions of parameters.
        hidden_size: Features of the residual stream.
        layers: Decoder layers.
        heads: Attention heads, half as many for keys and values.
        initial_spread: Standard deviation of random weights: 0.02, usual for wide models, learns late at this width.
        base: Pretraining on all abilities.
        generalist: From the base: all abilities.
        specialist: From the base: arithmetic only, so the words are forgotten rather than never learned.
    """

    seed: int = 0
    vocabulary: int = 300
    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    initial_spread: float = 0.06
    base: Stage = field(default_factory=lambda: Stage(1300, 32, 3e-3, 0.5, whole_text=True))
    generalist: Stage = field(default_factory=lambda: Stage(400, 32, 1.5e-3, 0.25))
    specialist: Stage = field(default_factory=lambda: Stage(400, 32, 8e-4, 1.0))

    @property
    def version(self) -> str:
        """A name that changes with any of the settings, for the cache.

        >>> Recipe(seed=1).version == Recipe(seed=2).version
        False
        """
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()
        return f"v{GENERATION}-{digest[:10]}"


def parse_name(name: str) -> tuple[str, Recipe]:
    """A model's name and recipe, from its name with or without a seed.

    >>> name, recipe = parse_name("specialist@2")
    >>> name, recipe.seed
    ('specialist', 2)

    Raises:
        ActError: There is no such model.
    """
    model, _, seed = name.partition("@")
    if model not in MODELS or ("@" in name and not re.fullmatch(r"[0-9]{1,9}", seed)):
        choices = ", ".join(f"lab:{each}" for each in MODELS)
        hint = f"Choose one of {choices}, if you like with a seed: lab:{MODELS[-1]}@1."
        raise ActError(ConfigIssue("lab model", name, "must name a model of the laboratory", hint))
    return model, Recipe(seed=int(seed or 0))


def cached_folder(name: str, recipe: Recipe) -> Path:
    """Where a laboratory's model lies once it is built."""
    return cache_folder("laboratory") / recipe.version / name


def model_folder(name: str, recipe: Recipe | None = None) -> Path:
    """The Hugging Face folder of a laboratory's model; the first call builds all three models, later ones find them.

    If several processes ask at once, one builds and shows its progress while the others wait. A build that is killed
    leaves no folder that looks complete.

    Args:
        name: One of ``MODELS``; without a recipe, if you like with a seed: ``specialist@1``.
        recipe: Sizes and lengths; by default the laboratory's own.

    Returns:
        A folder with config, generation config, safetensors and tokenizer.

    Raises:
        ActError: There is no such model, or the cache cannot be written.
    """
    model, of_name = parse_name(name)
    folder = cached_folder(model, recipe or of_name)
    if folder.is_dir():
        return folder
    laboratory = folder.parent
    root = laboratory.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        problem = f"must be a folder that can be written ({error.strerror})"
        issue = ConfigIssue("ACT_LIGHTNING_CACHE", str(root), problem, "Set it to a folder of yours.")
        raise ActError(issue) from error
    with FileLock(f"{laboratory}.lock"):
        if not folder.is_dir():
            for leftover in root.glob(f"{laboratory.name}.unfinished-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f"{laboratory.name}.unfinished-", dir=root))
            try:
                _build(recipe or of_name, unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(laboratory)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _build(recipe: Recipe, laboratory: Path) -> None:
    """Build all three models, the two siblings side by side: the specialist in a process of its own."""
    build_model("base", recipe, laboratory)
    code = (
        f"from {__name__} import Recipe, Stage, build_model; build_model('specialist', {recipe!r}, {str(laboratory)!r})"
    )
    with tempfile.TemporaryFile(mode="w+") as output:
        sibling = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=output,
            stderr=output,
        )
        try:
            build_model("generalist", recipe, laboratory)
            if sibling.wait():
                output.seek(0)
                raise RuntimeError(f"training lab:specialist failed:\n{output.read()}")
        finally:
            sibling.kill()
            sibling.wait()


def build_model(name: str, recipe: Recipe, laboratory: Path | str) -> None:
    """Train one model and write its Hugging Face folder; the state of torch's random generator is restored.

    Args:
        name: One of ``MODELS``; those other than the base start from it.
        recipe: Sizes and lengths.
        laboratory: The folder where all three are written.
    """
    stage: Stage = getattr(recipe, name)
    base, folder = Path(laboratory, "base"), Path(laboratory, name)
    sums, words = rows("arithmetic"), rows("words")
    weights = [stage.arithmetic / len(sums)] * len(sums) + [(1 - stage.arithmetic) / len(words)] * len(words)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(1)  # more make so small a model slower, many times so beside another busy process
        try:
            if name == "base":
                model, tokenizer = _initialize(recipe, sums + words)
            else:
                model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(base)
            train(model, encode(tokenizer, sums + words, weights, stage.whole_text), stage, f"lab:{name}")
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
