"""Model cards: the README of an exported model, for the hub, for readers, and for making the run again."""
