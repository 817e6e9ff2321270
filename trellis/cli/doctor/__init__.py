"""`trellis doctor`: what of a machine is as Trellis needs it, and what to do about the rest."""
