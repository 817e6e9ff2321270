"""`trellis demo`: a whole federation on one machine, for a minute."""
