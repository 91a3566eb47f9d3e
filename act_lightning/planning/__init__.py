"""Looking ahead: what is wrong with a run's settings, and what it will do, before any weight is read."""
