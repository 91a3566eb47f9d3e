"""The paper's findings as functions: scores in, a dataframe or a figure out; and the page that shows them all."""
