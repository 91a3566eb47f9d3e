"""Scores before fit: run a pair of models over an ability's answers and measure every channel."""
