"""Files of strangers, made by Hypothesis: read, or refused with an ActError, soon; never anything else."""
