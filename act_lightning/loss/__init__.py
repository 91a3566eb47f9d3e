"""The answer-only loss: next-token cross-entropy at answer tokens, a bounded number of logits at a time."""

from act_lightning.loss.answers import Scored, answer_loss, score_answers

__all__ = ["Scored", "answer_loss", "score_answers"]
