"""ACT: find the channels of an ability by comparing two sibling models, move only those, fine-tune briefly."""

__version__ = "0.1.0"
