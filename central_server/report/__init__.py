"""`report.html`: a task at its end, for people. One file, no script, nothing from the network."""
