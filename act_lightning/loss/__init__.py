"""The answer-only loss: next-token cross-entropy at answer tokens, a bounded number of logits at a time."""

from act_lightning.loss.answers import answer_logits, answer_loss, score_answers
from act_lightning.loss.head import Scored

__all__ = ["Scored", "answer_logits", "answer_loss", "score_answers"]
