"""The page that shows the findings of one or several runs."""
