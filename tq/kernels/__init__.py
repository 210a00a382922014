"""`tq bench kernels`: the operators alone, checked, timed beside their peers and held to the machine's ceilings."""
