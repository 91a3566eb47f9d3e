"""Greedy answers to an evaluation set, beside transformers' ``generate`` in batches of as many tokens, in turns.

    python -m benchmarks.generation lab:generalist --items 400 --pairs 4
    python -m benchmarks.generation runs/study/smollm2/models/base --items 200

Processor time of both, their ratio, and how many answers are the same, token for token. Questions are the laboratory's,
or, of a folder, those of the study on SmolLM2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from act_lightning.architecture import evaluating
from act_lightning.checkpoints.models import locate
from act_lightning.data.ability_data import EvaluationData
from act_lightning.data.tasks import read_prompts
from act_lightning.evaluation import generation
from benchmarks.smollm2 import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model of the laboratory, or a folder")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=2048, help="rows × length of a batch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--same-memory", action="store_true", help="no more keys and values than --tokens")
    options = parser.parse_args()
    if options.same_memory:
        generation._KEYS_AND_VALUES = 0
    folder, limit, tokens = locate(options.model), options.new_tokens, options.tokens
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        source: dict[str, Any] = {"path": "lab:words", "split": "test"}
        if not options.model.startswith("lab:"):
            source = {"path": file.name}
            file.write("".join(json.dumps(row) + "\n" for row in rows("words")["validation"]))
            file.flush()
        data = EvaluationData(**source, limit=options.items, role="recover", max_new_tokens=limit)
        prompts = [prompt.input_ids for prompt in read_prompts("words", data, tokenizer, "chat")]
    ends = generation.end_of_turn_ids(model.generation_config, tokenizer)
    with evaluating(model):
        for _ in range(options.pairs):
            start = time.process_time()
            theirs = generation._generate(model, prompts, limit, ends, tokenizer.pad_token_id, tokens, ())
            middle = time.process_time()
            ours = generation._Decoder(model, prompts, limit, ends, tokens, ()).run()
            seconds = middle - start, time.process_time() - middle
            same = sum(answer == their[: len(answer)] for answer, their in zip(ours, theirs, strict=True))
            ratio, tokens_read = seconds[0] / seconds[1], sum(map(len, ours))
            print(
                f"transformers {seconds[0]:.2f} s, ours {seconds[1]:.2f} s, ratio {ratio:.2f}; "
                f"{same} of {len(ours)} answers the same, {tokens_read} tokens",
                flush=True,
            )


if __name__ == "__main__":
    main()
