"""`trellis task`: everything an operator does with a task."""
