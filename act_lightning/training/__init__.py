"""Fine-tuning: the answer-only loss, optimizers, sharding, checkpoints of a fit, and what reaches into Lightning."""
