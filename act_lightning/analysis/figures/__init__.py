"""The figures of the report: dataframes in, matplotlib figures out."""
