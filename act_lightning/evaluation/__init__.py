"""What a model answers, whether it is right, and how sure a share of right answers is."""
