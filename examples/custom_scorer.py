"""A scorer of your own: say how a channel is scored, and compare that with the scorers that are there.

    python examples/custom_scorer.py
    python examples/custom_scorer.py --target Qwen/Qwen2.5-Math-1.5B-Instruct --source Qwen/Qwen2.5-1.5B-Instruct \
        --ability data/science-ar.jsonl --keep data/math-en.jsonl

Without arguments it uses the laboratory, tiny models that are trained on first use (two minutes). In a config, a scorer
in a module of yours is `transfer: {selection: {class_path: my_scorers.Rare, init_args: {power: 3}}}`.
"""

import argparse
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

import act_lightning as act
from act_lightning.checkpoints.models import locate
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.evaluation.evaluator import score_model
from act_lightning.scorers import ActivationScorer


@dataclass(frozen=True)
class Rare(ActivationScorer):
    """(mean of |Δ|^power)^(1/power) over answer tokens, Δ being what the source's weights do to a channel's output.

    With power 1 it is `local`; a larger power prefers channels that differ much, but at few tokens.
    """

    power: float = 3.0
    needs_source = False  # the source's own activations
    needs_source_weights = True  # the target's module with the source's weights, on the target's inputs

    def values(self, observation):
        """One module's outputs, [tokens, ..., channels]; the profiler averages over all answer tokens."""
        change = observation.source_weight_output.float() - observation.target.float()
        return change.abs() ** self.power

    def finish(self, means):
        """The means, [1, channels], to one score for each channel."""
        return means[0] ** (1 / self.power)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="lab:specialist", help="the model to improve")
    parser.add_argument("--source", default="lab:generalist", help="its sibling that has the ability")
    parser.add_argument("--ability", default="lab:words", help="samples of the ability to bring back")
    parser.add_argument("--keep", default="lab:arithmetic", help="samples of what must not be lost")
    parser.add_argument("--samples", type=int, default=256, help="of each")
    parser.add_argument("--ratio", type=float, default=0.05, help="share of the parameters that moves")
    parser.add_argument("--out", default="runs/custom_scorer", help="folder for the scores")
    args = parser.parse_args()

    def unseen(path):
        return {"split": "test"} if path.startswith("lab:") else {"skip": args.samples}

    data = AbilityDataModule(
        {"ability": AbilityData(args.ability, limit=args.samples)},
        evaluations={  # kind="number" or "choice" where an answer is more than one exact string
            "ability": EvaluationData(args.ability, role="recover", limit=args.samples, **unseen(args.ability)),
            "keep": EvaluationData(args.keep, role="keep", limit=args.samples, **unseen(args.keep)),
        },
        target=args.target,
        batch_size=16,
    )
    data.prepare_data()
    data.setup()
    batches = list(data.train_dataloader())

    def right_answers(mask=None):
        model = AutoModelForCausalLM.from_pretrained(locate(args.target), dtype=torch.float32)
        if mask is not None:
            act.merge_(model, args.source, mask, scale=1.0)
        return score_model(data, model, tokens_per_batch=4096)

    results = {"target": right_answers()}
    for scorer in ("activation", "local", Rare()):
        scores = act.score(args.target, args.source, batches, scorer=scorer)
        name = scorer if isinstance(scorer, str) else scorer.label
        scores.save(f"{args.out}/{name}.safetensors")
        results[name] = right_answers(scores.select(args.ratio, share="parameters"))

    print(f"\nRight answers in %, with 95 % intervals, after {args.ratio:.0%} of the parameters moved:")
    for name, result in results.items():
        print(f"{name:12} ability {result.share('ability').text:16} keep {result.share('keep').text}")
    print("One pair and one budget: another pair, or another --ratio, may rank them otherwise.")
    print(f"\nThe scores are in {args.out}. Next: copy the class into a module of yours and name it in a config;")
    print("`python -m act_lightning sweep` tries it on a grid of λ and p. See docs/selections.md.")


if __name__ == "__main__":
    main()
