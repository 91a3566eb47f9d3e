"""The λ × p sweep: one model in memory, to which every point of a grid is applied, evaluated and taken back."""
