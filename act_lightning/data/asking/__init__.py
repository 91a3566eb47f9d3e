"""Items of evaluation sets: what is asked, in which words, with which options, and the reference."""
