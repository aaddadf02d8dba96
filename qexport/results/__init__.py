"""What `qexport report` makes of the tables of sweeps: means, papers' numbers beside them, plots, pages."""
