"""The answer-only loss: next-token cross-entropy at answer tokens, a bounded number of logits at a time."""

from act_lightning.loss.answers import LOGITS_AT_ONCE, answer_logits, answer_loss, score_answers
from act_lightning.loss.head import Scored

__all__ = ["LOGITS_AT_ONCE", "Scored", "answer_logits", "answer_loss", "score_answers"]
